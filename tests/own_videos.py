"What tests of own videos share: small videos, transcripts, and a folder that serves both halves."
import numpy as np
import pytest

from mcls_nb.videos.extractors import PixelFeatures
from mcls_nb.videos.ingest import ingest
from mcls_nb.videos.media import write_video


def pictures(seed, seconds, fps=5, h=48, w=64):
    "A square that walks over a ground; both depend on the seed."
    rng = np.random.default_rng(seed)
    ground, colour = rng.integers(20, 90, 3), rng.integers(130, 255, 3)
    for k in range(round(seconds * fps)):
        x = np.full((h, w, 3), ground, np.uint8)
        left = (2 * k) % (w - 16)
        x[12:30, left:left + 16] = colour
        yield x

def video(folder, name, seconds=6., seed=0):
    return write_video(folder/name, pictures(seed, seconds), fps=5)

def clock(t):
    whole = int(t)
    return f'{whole // 3600:02}:{whole // 60 % 60:02}:{t % 60:06.3f}'.replace('.', ',')

def srt(*cues):
    return '\n'.join(f'{k}\n{clock(a)} --> {clock(b)}\n{text}\n'
                     for k, (a, b, text) in enumerate(cues, 1))

def outcome(report, item):
    "What the report says of an item, e.g. 'made: 6.0 s'."
    return next((f'{r.outcome}: {r.about}' for r in report.itertuples() if r.item == item), None)

def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(folder.rglob('*')) if p.is_file()}


class Counting(PixelFeatures):
    "Counts the pieces that it makes rows of."
    def __init__(self):
        super().__init__()
        self.calls = 0
    def extract(self, frames):
        self.calls += 1
        return super().extract(frames)


@pytest.fixture(scope='module')
def lessons(tmp_path_factory):
    "Ten small videos in Chinese with summaries and queries; the folder, what ingest says of it."
    root = tmp_path_factory.mktemp('lessons')
    f = root/'in'
    f.mkdir()
    things = [('红', 'red'), ('蓝', 'blue'), ('绿', 'green'), ('黄', 'yellow'), ('黑', 'black')]
    queries, splits = ['video,start,end,type,zh,en'], ['video,split']
    for k in range(10):
        (zh, en), name = things[k % 5], f'v{k}'
        video(f, f'{name}.mp4', 6., k)
        said = srt((0., 2., f'{zh}球飞了。'), (3., 5., f'{zh}球停了。'))
        (f/f'{name}.zh.srt').write_text(said, encoding='utf-8')
        (f/f'{name}.summary.txt').write_text(f'A {en} ball flies.')
        queries.append(f'{name},0,2,vt,{zh}球飞,{en} flies')
        splits.append(f'{name},{"test" if k > 7 else "train"}')
    (f/'queries.csv').write_text('\n'.join(queries) + '\n', encoding='utf-8')
    (f/'splits.csv').write_text('\n'.join(splits) + '\n')
    return root, ingest(f, root/'out', workers=1)
