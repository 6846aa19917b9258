"A world of a few dozen videos and a small network, on which stages and recipes are tested."
from types import SimpleNamespace

import pytest
import torch

from mcls_nb.summarize import recipes, stages
from mcls_nb.summarize.data import world_corpus
from mcls_nb.summarize.models import SummarizerConfig
from mcls_nb.summarize.recipes import SummaryFits, SummaryTraining
from mcls_nb.training import FitConfig
from mcls_nb.worlds.how2 import How2World, How2WorldConfig

WORDS = dict(topics=3, actions=3, objects=3, tools=2, adjectives=3, people=3)
SPLITS = dict(pretrain=32, train=16, val=4, test=4)
WORLD = How2WorldConfig(**WORDS, **SPLITS, d_video=8, d_latent=4)
CORPUS = world_corpus(How2World(WORLD))
NETWORK = SummarizerConfig(d=16, heads=2, ffn=16, encoder_layers=2, decoder_layers=1)
ONCE = FitConfig(epochs=1, batch_size=8, lr=1e-3, use='last')
FITS = SummaryFits(*[ONCE] * 5)


def training(**changes):
    "A `SummaryTraining` of the small network, with fields changed."
    return SummaryTraining(**dict(corpus=CORPUS, network=NETWORK, fits=FITS) | changes)


def follow(recipe, **changes):
    "A training that has gone through a recipe."
    run = training(**changes)
    run.trained = recipe(run)
    return run


def weights(model):
    "A copy of a network's numbers by name."
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def final(run): return weights(run.trained.network)


def changed(a, b): return {name for name in a if not torch.equal(a[name], b[name])}


def same(a, b): return a.keys() == b.keys() and not changed(a, b)


def spied(recipe, **changes):
    "A training that has gone through a recipe; what `fit` was handed in each stage, by its note."
    seen, fit = {}, stages.fit
    def spy(model, data, loss, cfg, out=None, validate=None, note=''):
        teacher = seen.get('stage 1')
        one = SimpleNamespace(model=model, data=data, cfg=cfg, before=weights(model),
                              teacher_trains=teacher and teacher.model.training)
        seen['distil' if note.startswith('distil') else note] = one
        history = fit(model, data, loss, cfg, out, validate, note)
        one.after = weights(model)
        return history
    with pytest.MonkeyPatch.context() as patch:
        for module in (stages, recipes): patch.setattr(module, 'fit', spy)
        return follow(recipe, **changes), seen
