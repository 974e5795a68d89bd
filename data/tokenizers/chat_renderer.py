"""Renders chats with a template: a process of its own, with limits on time and memory that no template can lift.

It reads {template, variables, chats: [[messages, add_generation_prompt]], marks, seconds} as JSON from standard input,
and writes a list with the text of each chat, or {"error": why}. What stands in {% generation %} is put between marks.
Templates find what transformers' `apply_chat_template` gives them: a sandbox in which they change nothing and reach no
attribute of Python's own.
"""

import json
import resource
import sys
from datetime import date

MEMORY = 2 * 2**30
MOST_CHARACTERS = 100_000_000
TODAY = date(2024, 7, 26)
"""What templates that name the day are told: the same chat must be the same text tomorrow. Llama 3.2's own default."""


def main() -> None:
    given = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"], given["seconds"]))
    template = compile_template(given["template"], given["marks"])
    texts, size = [], 0
    for messages, add_generation_prompt in given["chats"]:
        try:
            values = {**given["variables"], "messages": messages, "add_generation_prompt": add_generation_prompt}
            text = template.render(tools=None, documents=None, **values)
            texts.append(text)
            size += len(text)
            if size > MOST_CHARACTERS:
                raise ValueError(f"more than {MOST_CHARACTERS:,} characters are written for {len(texts)} chats")
        except Exception as error:  # a template can raise anything
            texts.append({"error": f"{type(error).__name__}: {error}"[:500]})
            break
    json.dump(texts, sys.stdout)


def compile_template(source, marks):
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller):
            return marks[0] + caller() + marks[1]

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    class Namespace(jinja2.utils.Namespace):
        def __setitem__(self, name, value):
            plain_names([name])
            super().__setitem__(name, value)

    def plain_names(names):
        if any(str(name).startswith("_") for name in names):
            raise jinja2.sandbox.SecurityError("a name in a namespace begins with an underscore")

    def namespace(*values, **more):
        plain_names(dict(*values, **more))
        return Namespace(*values, **more)

    def new_dict(*values, **more):
        return dict(*values, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: TODAY.strftime(form)}
    environment.globals |= {"namespace": namespace, "dict": new_dict}
    return environment.from_string(source)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        main()
    except Exception as error:  # of the template as a whole
        json.dump({"error": f"{type(error).__name__}: {error}"[:500]}, sys.stdout)
