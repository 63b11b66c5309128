"""What fault tests share."""

import pytest
from harness import Search


@pytest.fixture(scope="session")
def undisturbed(byte_files, tmp_path_factory):
    """undisturbed(slots, **options): the search with these options that nothing befell. Each is run once."""
    searches = {}

    def find(slots=1, **options):
        key = slots, *sorted(options.items())
        if key not in searches:
            searches[key] = Search(tmp_path_factory.mktemp("undisturbed") / "run", byte_files, slots, **options)
            searches[key].finish()
        return searches[key]

    return find
