"Give every notebook links to its neighbours and to the index, in its last cell: tools/links.py"
import json, os
from pathlib import Path

root = Path(__file__).resolve().parents[1]/'nbs'
index = root/'index.ipynb'


def titled(path):
    "The first heading of a notebook."
    texts = (''.join(c['source']) for c in json.loads(path.read_text('utf-8'))['cells'])
    return next(t for t in texts if t.startswith('# ')).splitlines()[0][2:].strip()

def link(path, to, text): return f'[{text}]({os.path.relpath(to, path.parent)})'

def write(path, line):
    "Put a line of links into the last cell; cells without a change keep their bytes."
    text = path.read_text('utf-8')
    book = json.loads(text)
    cell = {'cell_type': 'markdown', 'id': 'links', 'metadata': {}, 'source': [line]}
    book['cells'] = [c for c in book['cells'] if c.get('id') != 'links'] + [cell]
    new = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + '\n'
    if new != text: path.write_text(new, encoding='utf-8')

for folder in [root, *(root/name for name in ('api', 'tutorials', 'apps', 'bench'))]:
    books = [p for p in sorted(folder.glob('*.ipynb')) if p != index]
    for before, path, after in zip([None, *books], books, [*books[1:], None]):
        parts = [link(path, before, f'← {titled(before)}')] if before else []
        parts.append(link(path, index, 'Index'))
        if after: parts.append(link(path, after, f'{titled(after)} →'))
        write(path, ' · '.join(parts))
