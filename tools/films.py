"Films as tutorial 5 makes them, with all that belongs to them: python tools/films.py FOLDER"
import csv
from pathlib import Path

import numpy as np
from fastcore.script import call_parse

from mcls_nb.videos.media import write_video

COLOURS = dict(red=((230, 50, 40), 'vermelh', '红'), green=((50, 200, 70), 'verde', '绿'),
               blue=((60, 90, 240), 'azul', '蓝'), white=((240, 240, 240), 'branc', '白'))
SHAPES = dict(ball=('bola', '球'), box=('caixa', '盒子'), star=('estrela', '星星'))
WAYS = dict(right=('para a direita', '右', (1, 0)), left=('para a esquerda', '左', (-1, 0)),
            down=('para baixo', '下', (0, 1)))


def spoken(colour, shape, way):
    "What the voice says, by language."
    (_, c, zh), (pt, s), (to, w, _) = COLOURS[colour], SHAPES[shape], WAYS[way]
    ending = 'a' * (c[-1] in 'hc')
    return dict(en=f'Here the {colour} {shape} goes {way}.',
                pt=f'Agora a {pt} {c}{ending} vai {to}.', zh=f'现在{zh}色的{s}往{w}走。')

def asked(colour, shape, way):
    "What somebody may look for, by language."
    zh = f'{COLOURS[colour][2]}{SHAPES[shape][1]}向{WAYS[way][1]}移动'
    return dict(en=f'a {colour} {shape} moves {way}', zh=zh)

def picture(colour, shape, way, t, h=48, w=64): # h w 3 uint8
    "A scene at a time from 0 to 1."
    y, x = np.mgrid[:h, :w]
    dx, dy = WAYS[way][2]
    x, y = abs(x - w / 2 - dx * (t - .5) * w * .7), abs(y - h / 2 - dy * (t - .5) * h * .7)
    shapes = dict(ball=x**2 + y**2 < 81, box=np.maximum(x, y) < 8, star=x * y < 9)
    inside = shapes[shape] & (np.maximum(x, y) < 12)
    return np.where(inside[..., None], COLOURS[colour][0], (40, 40, 60)).astype(np.uint8)

def clock(seconds): return f'00:{int(seconds) // 60:02}:{seconds % 60:06.3f}'

def film(path, scenes, seconds=6, fps=5):
    "A video and its subtitles."
    times = range(seconds * fps)
    write_video(path, (picture(*s, k / seconds / fps) for s in scenes for k in times), fps)
    for language in ('pt', 'en', 'zh'):
        cues = ['WEBVTT']
        for k, scene in enumerate(scenes):
            span = f'{clock(k * seconds + .5)} --> {clock((k + 1) * seconds)}'
            cues.append(f'{span}\n{spoken(*scene)[language]}')
        path.with_suffix(f'.{language}.vtt').write_text('\n\n'.join(cues), encoding='utf-8')

def summary(scenes):
    "Who is seen first, and who last."
    first, last = (f'{colour} {shape}' for colour, shape, _ in (scenes[0], scenes[-1]))
    return f'Watch a {first} first, and a {last} at the end.'

def table(path, lines):
    "Lines as a CSV file."
    with open(path, 'w', encoding='utf-8', newline='') as f:
        writer = csv.DictWriter(f, lines[0])
        writer.writeheader()
        writer.writerows(lines)

@call_parse
def films(
    folder:str, # to make them in
    number:int=12, # of films; the last fifth of them is for testing
    seed:int=5, # of who plays
):
    "Make films of four scenes: in each a coloured shape crosses the picture, and a voice says so."
    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    queries, splits = [], []
    for k in range(number):
        draw = lambda: tuple(str(rng.choice(list(names))) for names in (COLOURS, SHAPES, WAYS))
        scenes = [draw() for _ in range(4)]
        name = f'film{k:02}'
        film(folder/f'{name}.mp4', scenes)
        (folder/f'{name}.summary.txt').write_text(summary(scenes), encoding='utf-8')
        for i, scene in enumerate(scenes):
            queries.append(dict(video=name, start=6 * i, end=6 * i + 6, type='vt', **asked(*scene)))
        splits.append(dict(video=name, split='train' if k < number - number // 5 else 'test'))
    table(folder/'queries.csv', queries)
    table(folder/'splits.csv', splits)
