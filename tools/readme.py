"Render nbs/index.ipynb as README.md, with its stored outputs: python tools/readme.py [FOLDER]"
import re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
out = Path(sys.argv[1]) if len(sys.argv) > 1 else root

book = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
book.metadata.language_info = {'name': 'python'} # cleaned away in the repository; colours the code
book.cells = [c for c in book.cells if not re.match(r'#\s*\|\s*hide\b', c.source)]
for c in book.cells: # a sentence with numbers in it is a cell whose output alone is shown
    if c.cell_type == 'code' and re.match(r'#\s*\|\s*echo: false', c.source):
        c.cell_type, c.source = 'markdown', ''.join(o.data['text/markdown'] for o in c.outputs)
for c in book.cells:
    if c.cell_type == 'code': c.source = re.sub(r'^#\s*\|.*\n', '', c.source, flags=re.M)
names = {'unique_key': 'README', 'output_files_dir': 'README_files'}
text, made = MarkdownExporter().from_notebook_node(book, names)
for name, data in made['outputs'].items(): # pictures
    (out/name).parent.mkdir(exist_ok=True)
    (out/name).write_bytes(data)
text = text.replace('](../', '](') # links of the notebook start in nbs/
(out/'README.md').write_text(re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', encoding='utf-8')
