"""Both apps in JupyterLab, light and dark, and in Voila. Screenshots lie in runs/browser."""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT/'runs'/'browser'
INSTALLED = map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
CHROMIUM = os.environ.get('CHROMIUM') or next(filter(None, INSTALLED), None)
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run '
         '--disable-background-networking --disable-component-update --disable-sync').split()
WAIT = 120_000 # ms, on a busy machine

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip(
    'playwright.sync_api',
    reason='Playwright is not installed: the apps are tried in a browser where it is.')
if CHROMIUM is None:
    pytest.skip('No Chromium was found: the apps are tried in a browser where there is one '
                '(or CHROMIUM names it).', allow_module_level=True)


# --- servers and pages

@contextmanager
def served(command, folder, port, ready):
    "A server, until it is not needed any more."
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    with open(folder/'server.log', 'w') as log:
        process = subprocess.Popen([sys.executable, '-m', *command], cwd=folder, stdout=log,
                                   stderr=log, env=env)
    def answers():
        assert process.poll() is None, (folder/'server.log').read_text()
        try: return urllib.request.urlopen(ready, timeout=2)
        except OSError: return False
    try:
        until(answers, 'the server does not answer')
        yield
    finally:
        process.terminate()
        process.wait(30)

def until(true, what, pause=lambda: time.sleep(.1)):
    "Wait for a condition, not for a time; `pause` lets a page go on."
    end = time.monotonic() + WAIT / 1000
    while not true():
        assert time.monotonic() < end, what
        pause()

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "The apps, with models that are trained in seconds."
    place = tmp_path_factory.mktemp('apps')
    for p in (ROOT/'nbs'/'apps').glob('*.ipynb'):
        text = p.read_text('utf-8')
        assert 'smoke: bool = False' in text
        text = text.replace('smoke: bool = False', 'smoke: bool = True ')
        (place/p.name).write_text(text, 'utf-8')
    return place

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield b
        b.close()

@contextmanager
def lab(browser, folder, name, theme):
    "An app in JupyterLab, all cells run."
    port, settings = free_port(), folder/f'settings {theme}'
    values = {
        'notebook-extension/tracker': {'windowingMode': 'none'},
        'apputils-extension/notification': {'fetchNews': 'false'},
        'apputils-extension/themes': {'theme': f'JupyterLab {theme}'}}
    for file, value in values.items():
        path = settings/'@jupyterlab'/f'{file}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    command = [
        'jupyterlab', '--no-browser', '--allow-root', f'--ServerApp.port={port}',
        '--ServerApp.port_retries=0', '--IdentityProvider.token=t', '--LabApp.news_url=',
        '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
        f'--LabApp.user_settings_dir={settings}', f'--LabApp.workspaces_dir={folder/"workspaces"}']
    server = served(command, folder, port, f'http://127.0.0.1:{port}/api?token=t')
    address = f'http://127.0.0.1:{port}/lab/tree/{name}.ipynb?token=t&reset'
    with server, opened(browser, address) as page:
        page.wait_for_selector('.jp-NotebookPanel .jp-CodeCell')
        page.wait_for_selector('text=/ipykernel.*Idle/') # in the status bar
        page.click('text=Run >> nth=0')
        page.click('text="Run All Cells"')
        yield page

@contextmanager
def voila(browser, folder, name, theme):
    "An app behind Voila."
    pytest.importorskip('voila', reason='Voila is not installed: pip install "mcls_nb[app]".')
    port = free_port()
    command = ['voila', f'{name}.ipynb', '--no-browser', f'--port={port}',
               f'--theme={theme.lower()}', '--Voila.ip=127.0.0.1']
    server = served(command, folder, port, f'http://127.0.0.1:{port}/voila/static/voila.js')
    with server, opened(browser, f'http://127.0.0.1:{port}/') as page: yield page

@contextmanager
def opened(browser, address):
    "A page without errors."
    page, errors = browser.new_page(viewport=dict(width=1250, height=2300)), []
    page.set_default_timeout(WAIT)
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.goto(address, wait_until='domcontentloaded')
    yield page
    page.close()
    assert not errors, errors[:3]


# --- what a reader does

PLOTS = '.js-plotly-plot'
def state(page, n):
    "Title, shapes and data of the n-th figure, as text."
    script = f"""(n) => {{
      const p = document.querySelectorAll('{PLOTS}')[n];
      const data = p.data.map(t => [t.x, t.y, t.z, t.text]);
      return JSON.stringify([p.layout.title.text, p.layout.shapes, data]);
    }}"""
    return page.evaluate(script, n)

@contextmanager
def changes(page, *numbers):
    "These figures change, all of them."
    before = {n: state(page, n) for n in numbers}
    yield
    for n in numbers:
        until(lambda: state(page, n) != before[n], f'figure {n} did not change',
              lambda: page.wait_for_timeout(100))

@contextmanager
def rewritten(page, text):
    "This text changes."
    before = text.inner_html()
    yield
    until(lambda: text.inner_html() != before, 'a text did not change',
          lambda: page.wait_for_timeout(100))

LISTENING = "p._ev && p._ev.listenerCount('plotly_click')" # the last that a figure begins

def control(page, name): return page.locator(f':has(> .widget-label:text-is("{name}"))')
def box(page, name): return control(page, name).locator('input')
def press(page, name, key): # at a slider
    control(page, name).locator('.noUi-handle').focus()
    page.keyboard.press(key)
def push(page, name, label): # a button, from the keyboard
    control(page, name).locator(f'button:has-text("{label}")').focus()
    page.keyboard.press('Space')
def drawn(page, n): # and listening to clicks
    plots = f"[...document.querySelectorAll('{PLOTS}')]"
    page.wait_for_function(f"{plots}.filter(p => {LISTENING}).length >= {n}")
def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.mouse.move(1, 1)
    page.wait_for_timeout(700)
    page.screenshot(path=SHOTS/f'{name}.png')

def read_summaries(page, name):
    drawn(page, 3)
    text = page.locator('.widget-html-content:has-text("What it read")')
    with changes(page, 0): press(page, 'head', 'ArrowRight')
    with changes(page, 0, 1), rewritten(page, text): # shaded by another row
        press(page, 'word', 'ArrowRight')
    with changes(page, 0, 1, 2): press(page, 'sample', 'ArrowRight')
    with changes(page, 0): press(page, 'layer', 'ArrowLeft') # it begins with the last one
    row = page.locator(f'{PLOTS} .nsewdrag').first.bounding_box()
    with changes(page, 0):
        page.mouse.click(row['x'] + row['width'] / 2, row['y'] + row['height'] * .9)
    shot(page, f'{name}-VDF')
    with changes(page, 0): push(page, 'system', 'MT')
    slot = f"document.querySelectorAll('{PLOTS}')[2].closest('.widget-vbox')" # it has no gate
    page.wait_for_function(f"getComputedStyle({slot}).display == 'none'")
    shot(page, f'{name}-MT')

def find_moments(page, name):
    drawn(page, 4)
    with changes(page, 0, 1, 2, 3):
        box(page, 'English').fill('Lily opens the door')
        box(page, 'English').press('Enter')
    with changes(page, 0):
        box(page, 'Chinese').fill('莉莉打开门')
        box(page, 'Chinese').press('Enter')
    about = page.locator('.widget-html-content:has-text("Said in it")')
    points = page.locator(f'{PLOTS} >> nth=0 >> .scatterlayer .trace .points path')
    first_column = f"document.querySelectorAll('{PLOTS}')[0].data[1]"
    n = page.evaluate(f"{first_column}.text.length") # dots of it
    target = points.nth(n + 1).bounding_box() # second answer in Chinese
    with changes(page, 0, 1, 2, 3), rewritten(page, about):
        page.mouse.move(target['x'] + 5, target['y'] + 5)
        page.mouse.click(target['x'] + 5, target['y'] + 5)
    assert 'Chinese answer 2' in about.inner_text()
    shot(page, f'{name}-typed')
    with changes(page, 1, 3): push(page, 'seen from', 'English') # the same moment
    with changes(page, 0, 1): press(page, 'example', 'ArrowRight')
    with changes(page, 1): press(page, 'answer', 'ArrowRight')
    with changes(page, 0): push(page, 'system', 'C3')
    shot(page, f'{name}-example')
    for language in ('English', 'Chinese'):
        box(page, language).fill('')
        box(page, language).press('Enter')
    page.wait_for_selector('.mcls-message:has-text("Type a query")')

HOSTS = [pytest.param(lab, 'Light', id='lab-light'), pytest.param(lab, 'Dark', id='lab-dark'),
         pytest.param(voila, 'Light', id='voila')]
APPS = [pytest.param('summaries', read_summaries, id='summaries'),
        pytest.param('moments', find_moments, id='moments')]

@pytest.mark.parametrize('host, theme', HOSTS)
@pytest.mark.parametrize('name, use', APPS)
def test_an_app_answers_its_reader(browser, folder, host, theme, name, use):
    with host(browser, folder, name, theme) as page:
        try: use(page, f'{name}-{host.__name__}-{theme.lower()}')
        except Exception:
            page.screenshot(path=run_shot(f'{name}-{host.__name__}-failed'))
            raise

def run_shot(name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    return SHOTS/f'{name}.png'
