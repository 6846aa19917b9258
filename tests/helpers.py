"What several test files call."
import pytest

from mcls_nb.core import DataError


def refused(f, *words):
    "`f` raises a DataError of one sentence that names a place, a remedy and the words."
    with pytest.raises(DataError) as e: f()
    said = str(e.value)
    assert said.endswith('.') and '\n' not in said and e.value.where is not None and e.value.fix
    for w in words: assert w in said, said
    return said
