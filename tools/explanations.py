"""Draw the README's pictures of a moment with the models of nbs/apps/moments.ipynb.

Trains them on first use; needs kaleido and a Chromium."""
from pathlib import Path

from mcls_nb.explain import open_moments
from mcls_nb.widgets import MomentBrowser

root = Path(__file__).resolve().parents[1]
finders = open_moments(('mXML', 'C3 Q1'), epochs=12, world={'train': 400}, out=root/'runs')
browser = MomentBrowser({'generated TV': finders})
card = dict(paper_bgcolor='white', plot_bgcolor='white', font_color='#444') # for dark pages, too
for name, height in (('curves', 480), ('ranking', 280)):
    figure = browser.figure(name)
    figure.update_layout(title_text='', margin_t=50, **card)
    figure.write_image(root/'results'/f'moment-{name}.svg', width=900, height=height)
