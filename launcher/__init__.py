"""Commands, configuration, the one training loop, metrics. Imports the other three rooms; none of them imports it."""
