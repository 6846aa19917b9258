"""Slow and simple twins of the search, and small things to search in; shared by tests and by the
notebook of the index, which shows them."""
import numpy as np
import torch

from mcls_nb.core import set_seed
from mcls_nb.retrieve.data import MomentCorpus, Query, VideoSet
from mcls_nb.retrieve.encoders import MXML, XMLConfig
from mcls_nb.retrieve.scoring import clip_streams, retrieval_streams


def noise(lengths, seed=0, tag='v'):
    "A corpus with videos of these lengths and nothing in it."
    rng = np.random.default_rng(seed)
    names = [f'{tag}{i}' for i in range(len(lengths))]
    def rows(d): return {n: rng.normal(size=(l, d)).astype(np.float32) for n, l in clips.items()}
    clips = dict(zip(names, lengths))
    query = Query(1, names[0], None, 'v', dict(en='who ?'))
    durations = {n: 1.5 * l for n, l in clips.items()}
    video, subtitles, words = rows(6), rows(5), rng.normal(size=(3, 5))
    corpus = MomentCorpus('noise', ('en',), dict(test=[query]), dict(test=durations), video,
                          dict(en=subtitles), dict(en={'1': words}), max_clips=40)
    return VideoSet(corpus, 'test')

def loud(seed=0):
    "An untrained model that has opinions: its weights are large enough that answers differ."
    set_seed(seed)
    cfg = XMLConfig(('en',), d_video=6, d_text=5, d=16, heads=2, max_clips=40)
    model = MXML(cfg).eval().requires_grad_(False)
    for p in model.parameters(): p.normal_(std=.3)
    return model

def all_scores(model, videos, queries, merge='mean'):
    "Scores q n and probabilities q n l of everything."
    b = videos.collate(range(len(videos)))
    clips = model.encode_clips(b.video, b.subtitles['en'], b.mask, 'en')
    edges = model.edges('en')(clip_streams(queries, clips).merged(merge), clips.mask)
    scores = retrieval_streams(queries, clips).merged(merge)
    return scores, edges.start.softmax(-1), edges.end.softmax(-1)

def same(found, due, score):
    """Assert that a ranking has the oracle's scores rank by rank, and for each answer the score
    that the oracle gives to that very answer (`score(query, video, start, end)`). Near ties may
    change places; returned is the share of places that hold the very same video."""
    n = due[0].shape[1]
    mine = np.exp(found.score)
    np.testing.assert_allclose(mine[:, :n], due[0], rtol=3e-5) # nan equals nan
    q, r = np.nonzero(found.video >= 0)
    answers = np.stack([found.video, found.start, found.end])[:, q, r]
    own = [score(i, int(v), s, e) for i, v, s, e in zip(q, *answers)]
    np.testing.assert_allclose(mine[q, r], own, rtol=3e-5)
    assert len({(i, *a) for i, a in zip(q, map(tuple, answers.T))}) == len(q) # none twice
    return (found.video[:, :n] == due[1].numpy()).mean()
