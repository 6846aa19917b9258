"""Draw the README's figures from the committed results: python tools/pictures.py

Needs kaleido and a Chromium."""
from pathlib import Path

import plotly.io as pio

root = Path(__file__).resolve().parents[1]
card = dict(paper_bgcolor='white', plot_bgcolor='white', font_color='#444') # for dark pages, too
for name, width, height in (('low-resource-small', 900, 440), ('c3-factors-small', 1100, 480)):
    figure = pio.read_json(root/'results'/f'{name}-figure.json')
    figure.update_layout(title_text='', margin_t=24, **card) # the title stands in the README
    figure.write_image(root/'results'/f'{name}.svg', width=width, height=height)
