"""Every system of the registry keeps one contract: it learns, its numbers have one form, the same
seed gives the same, weights survive a file, padding counts for nothing."""
import copy, itertools
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import torch

from mcls_nb.checkpoints import load_weights, save_checkpoint
from mcls_nb.papers import systems
from mcls_nb.papers.claims import PAPERS
from mcls_nb.papers.presets import MOMENTS, SUMMARIES, SummaryPreset
from mcls_nb.papers.runs import Run
from mcls_nb.papers.scores import TIDY, named, tidy
from mcls_nb.papers.systems import SYSTEMS, Retrieving, Summarizing, fits
from mcls_nb.retrieve import baselines
from mcls_nb.retrieve import recipes as moments
from mcls_nb.retrieve.c3 import consolidation_losses
from mcls_nb.retrieve.data import tv_corpus
from mcls_nb.retrieve.encoders import XMLConfig
from mcls_nb.retrieve.losses import compare
from mcls_nb.summarize import recipes as summaries
from mcls_nb.summarize import stages
from mcls_nb.summarize.data import world_corpus
from mcls_nb.summarize.models import SummarizerConfig
from mcls_nb.summarize.recipes import SummaryFits
from mcls_nb.summarize.rnn import RNNConfig
from mcls_nb.summarizer import Decoding
from mcls_nb.training import FitConfig
from mcls_nb.worlds.how2 import How2World, How2WorldConfig
from mcls_nb.worlds.tv import TVWorld, TVWorldConfig

ONCE = FitConfig(epochs=1, batch_size=8, lr=1e-3, use='last') # two steps a stage
HOW2 = How2WorldConfig(topics=3, actions=3, objects=3, tools=2, adjectives=3, people=3,
                       pretrain=16, train=16, val=2, test=3, d_video=8, d_latent=4)
WRITERS = SummaryPreset(
    HOW2, SummarizerConfig(d=16, heads=2, ffn=16, encoder_layers=3, decoder_layers=1),
    RNNConfig(embed=16, hidden=8, state=16, layers=1, rows=16), SummaryFits(*[ONCE] * 5),
    Decoding(beam=1, max_words=6), threads=1, metrics=('rougeL', 'bleu4'))
TINY = MOMENTS['tiny']
EMBEDDER = dict.fromkeys(('d', 'd_words', 'd_inside'), 16)
WIDTHS = dict(mcn=EMBEDDER, cal=EMBEDDER, mee=dict(d=16), excl=dict(d=16))

def shrunk(name, baseline):
    network = replace(baseline.network, **WIDTHS[name])
    return replace(baseline, network=network, fit=ONCE, batch_videos=4)

FINDERS = replace(
    TINY, world=TVWorldConfig(train=8, val=4, test=4, time_scale=.2), network=XMLConfig(d=16, heads=2),
    training=replace(TINY.training, fit=replace(ONCE, monitor='VCMR'), batch_videos=4),
    baselines={name: shrunk(name, b) for name, b in TINY.baselines.items()})


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Two folders of runs; one corpus for all systems that summarise, and one for those that retrieve."
    how2, tv = world_corpus(How2World(HOW2, 0)), tv_corpus(TVWorld(FINDERS.world, 0))
    with pytest.MonkeyPatch.context() as m:
        m.setitem(SUMMARIES, 'conform', WRITERS)
        m.setitem(MOMENTS, 'conform', FINDERS)
        m.setattr(systems, 'world_corpus', lambda *args: how2)
        m.setattr(systems, 'tv_corpus', lambda *args: tv)
        yield [tmp_path_factory.mktemp(name) for name in 'ab']


def trainings(system, out, monkeypatch):
    "Train and judge a system; its run, its tidy rows, and (model, data, loss) of each training."
    seen, run = [], Run(system, 'conform', 3)
    with monkeypatch.context() as m:
        for module in (summaries, stages, moments, baselines):
            def spy(model, data, loss, *args, fit=module.fit, **how):
                history = fit(model, data, loss, *args, **how)
                seen.append((model, data, loss))
                return history
            m.setattr(module, 'fit', spy)
        return run, run.result(out).rows, seen


def value(model, loss, batch):
    "Loss per item; whatever is drawn is drawn alike."
    torch.manual_seed(0)
    total, n = loss(model, batch)
    return total / n

@torch.no_grad()
def number(*args): return float(value(*args))


# --- it learns

STEPS = 30   # of Adam, on one batch
MARGIN = .65 # share of the first loss that may be left after them
TAUGHT = .85 # the same, of a loss with a teacher, whose doubts nobody can take away

# Most systems get to .4 and below within so many steps. What they cannot learn from is the same
# batch with other words at every step, or with nothing to see: such a copy stays above .7, where
# guessing well leads (`test_what_learns_nothing_is_caught`). Cross-entropy with a teacher cannot
# fall below the teacher's entropy, half of the first loss or more.

def left(model, loss, batch, disturb=lambda batch: batch):
    "The share of the loss that is left after a few steps on one batch, on a copy."
    model, found = copy.deepcopy(model), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        found.append(value(model, loss, disturb(batch)))
        optimizer.zero_grad()
        found[-1].backward()
        optimizer.step()
    losses = [float(v.detach()) for v in found]
    assert np.isfinite(losses).all(), losses
    return np.mean(losses[-3:]) / losses[0]

def other_words(batch):
    "Each time other summaries, made of the same words: their frequencies alone can be learned."
    words = batch.tgt_out[batch.tgt_mask]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(next(DRAWS)))
    shuffled = batch.tgt_out.clone()
    shuffled[batch.tgt_mask] = words[order]
    return replace(batch, tgt_out=shuffled)

DRAWS = itertools.count()

def unseen(x):
    "A batch of which nothing can be seen."
    if isinstance(x, dict): return {k: torch.zeros_like(v) for k, v in x.items()}
    if isinstance(x, torch.Tensor): return torch.zeros_like(x)
    blind = [f.name for f in fields(x) if f.name in ('batch', 'query', 'video', 'subtitles')]
    return replace(x, **{name: unseen(getattr(x, name)) for name in blind})


# --- padding

KEPT = 'span', 'own', 'teacher', 'share', 'ids', 'names' # not along time

def padded(x):
    "A batch with three more steps on each time axis: not valid, and full of rubbish."
    if isinstance(x, dict): return {k: padded(v) for k, v in x.items()}
    if is_dataclass(x):
        longer = {f.name: padded(getattr(x, f.name)) for f in fields(x) if f.name not in KEPT}
        return replace(x, **longer)
    if not isinstance(x, torch.Tensor) or x.ndim < 2: return x
    kind = {torch.bool: False, torch.long: 2}.get(x.dtype, 7.)
    return torch.cat([x, x.new_full((len(x), 3, *x.shape[2:]), kind)], 1)

def longer_edges(teacher):
    "What a teacher says of the clips of a padded batch: as of the others, and nothing of the new."
    def longer(logits): return torch.cat([logits, logits.new_full((len(logits), 3), -1e10)], 1)
    found = {}
    for language, scores in teacher.items():
        edges = replace(scores.edges, start=longer(scores.edges.start), end=longer(scores.edges.end))
        found[language] = replace(scores, edges=edges)
    return found

def consolidated(model, taught, consolidation):
    "The terms of a loss that a teacher adds, as numbers."
    compared = {l: compare(model, taught.batch, l) for l in model.cfg.languages}
    torch.manual_seed(0)
    terms = consolidation_losses(model, taught.batch, compared, taught.teacher, consolidation)
    return {name: float(term) for name, term in terms.items()}
