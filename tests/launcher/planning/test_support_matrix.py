from ingot.launcher.planning.support_matrix import PATH, page


def test_the_page_is_what_the_checks_say():
    assert PATH.read_text(encoding="utf-8") == page(), (
        "docs/support-matrix.md is stale; python -m ingot.launcher.planning.support_matrix writes it"
    )
