"Rows that are committed belong to the code and the settings that are committed with them."
import re
from pathlib import Path

import numpy as np
import pytest

from mcls_nb.papers.runs import Run
from mcls_nb.papers.scores import read_tidy

RESULTS = Path(__file__).parent.parent/'results'
FILES = sorted(f for kind in ('mcls', 'mvcmr', 'low-resource', 'scale')
               for f in RESULTS.glob(f'{kind}-*.csv') if 'items' not in f.name)

@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_rows_carry_the_names_of_their_runs(file):
    """A name counts everything that decides a run's numbers, the settings of its family among
    them: whoever changes these after a world was looked at gets other names."""
    rows = read_tidy(file).drop_duplicates('run')
    drawn = rows[rows.world.str.fullmatch(r'generated|world \d+')] # without knobs of their own
    assert len(drawn)
    for row in drawn.itertuples():
        samples = None if np.isnan(row.samples) else int(row.samples)
        number = int(re.search(r'\d*$', row.world)[0] or 0)
        run = Run(row.system, row.preset, int(row.seed), samples=samples, drawn=number)
        assert run.name == row.run
