"""Training: bad configurations and data, damaged and foreign checkpoints, runs that are killed,
several processes."""
import itertools, json, math, os, resource, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers import refused
from mcls_nb.checkpoints import load_checkpoint, load_weights, save_checkpoint
from mcls_nb.core import DataError, override, stream_seed
from mcls_nb.training import FitConfig, fit, lr_at, micro_batches

CFG = FitConfig(epochs=3, batch_size=6, lr=.02, clip=1., checkpoint_every=3, use='last')


def toy_data(n=40, size=6):
    "Items of eight features and a label; -100 is no label, so items differ in what they count."
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, 8, generator=g)
    y = x[..., :3].argmax(-1)
    y[torch.rand(n, 5, generator=g) < .4] = -100
    y[:, 0] = y[:, 0].clamp(min=0)
    items = torch.cat([x, y[..., None]], -1) # n 5 9
    def batches(epoch):
        g = torch.Generator().manual_seed(stream_seed('toy', epoch))
        order = torch.randperm(n, generator=g).tolist()
        return [order[i:i + size] for i in range(0, n, size)]
    return SimpleNamespace(batches=batches, collate=lambda chosen: items[chosen], items=items)


def toy_model(dropout=.2, width=16, seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Dropout(dropout)
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 3))


def toy_loss(model, batch):
    y, logits = batch[..., -1].long(), model(batch[..., :-1])
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction='sum'), (y >= 0).sum()


def weights(model):
    return torch.cat([t.detach().double().flatten() for t in model.state_dict().values()])


def names(folder): return sorted(p.name for p in Path(folder).iterdir())


@pytest.fixture(scope='module')
def straight():
    "Weights of a run that nothing interrupts."
    model = toy_model()
    fit(model, toy_data(), toy_loss, CFG)
    return weights(model)


# --- configuration and schedule ---

@pytest.mark.parametrize('change', [
    dict(epochs=0), dict(batch_size=0), dict(micro_batch=-1), dict(lr=0.), dict(lr=math.nan),
    dict(lr=math.inf), dict(betas=(.9, 1.)), dict(betas=(.9,)), dict(betas=(.9, 'x')),
    dict(eps=0.), dict(weight_decay=-1.), dict(warmup=-.1), dict(warmup=2.5), dict(warmup=math.nan),
    dict(warmup=math.inf), dict(min_lr_ratio=1.1), dict(clip=-1.), dict(bf16='maybe'),
    dict(patience=-1), dict(checkpoint_every=-1), dict(checkpoint_gap=-1.), dict(use='first')])
def test_impossible_values(change):
    (name, value), = change.items()
    refused(lambda: FitConfig(**change), f'parameter {name}: {value!r} is not a possible value')


@pytest.mark.parametrize('name,value,called', [
    ('lr', '0.1', 'a number'), ('lr', None, 'a number'), ('lr', 1j, 'a number'),
    ('epochs', 2.5, 'a whole number'), ('epochs', '3', 'a whole number'),
    ('epochs', True, 'a whole number'), ('patience', [1], 'a whole number'),
    ('betas', .9, 'a pair'), ('bf16', False, 'a text'), ('monitor', None, 'a text')])
def test_values_of_another_type(name, value, called):
    said = refused(lambda: FitConfig(**{name: value}))
    default = getattr(FitConfig(), name)
    assert said == f'parameter {name}: {value!r} is not {called}; the default is {default!r}.'


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    assert FitConfig(epochs=np.int64(3), lr=np.float32(.5), clip=1, warmup=7) == FitConfig(
        epochs=3, lr=.5, clip=1., warmup=7.)


WARMUPS, FLOORS = (0., .01, .3, .5, .99, 1, 5), (0., .2, 1.)
SCHEDULES = list(itertools.product((1, 2, 7, 100), WARMUPS, FLOORS))

@pytest.mark.parametrize('total,warmup,floor', SCHEDULES)
def test_schedule(total, warmup, floor):
    cfg = FitConfig(lr=1., warmup=warmup, min_lr_ratio=floor)
    if warmup >= 1 and warmup >= total:
        with pytest.raises(DataError, match='do not fit'): lr_at(0, total, cfg)
        return
    rates = [round(lr_at(s, total, cfg), 12) for s in range(total)]
    assert max(rates) == 1 and min(rates) > 0
    peak = rates.index(1)
    assert rates[:peak + 1] == sorted(rates[:peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] >= floor or rates[-1] == rates[peak]


SHARES = list(itertools.product((1, 2, 5, 8), (1, 2, 3), (0, 1, 3, 99)))

@pytest.mark.parametrize('n,processes,micro', SHARES)
def test_micro_batches_are_the_batch(n, processes, micro):
    parts = [micro_batches(list(range(n)), p, processes, micro) for p in range(processes)]
    assert [i for share in parts for part in share for i in part] == list(range(n))
    assert all(part and len(part) <= (micro or n) for share in parts for part in share)


# --- learning ---

@pytest.mark.parametrize('micro', [1, 2, 5])
def test_micro_batches(micro):
    a, b = toy_model(0.), toy_model(0.)
    fit(a, toy_data(), toy_loss, CFG)
    fit(b, toy_data(), toy_loss, override(CFG, micro_batch=micro))
    assert torch.allclose(weights(a), weights(b), atol=1e-5)


def test_bfloat16_learns_much_the_same():
    a, b = [fit(toy_model(0.), toy_data(), toy_loss, override(CFG, bf16=bf16)).curve('loss')
            for bf16 in ('no', 'yes')]
    assert 0 < (a - b).abs().max() < .05


def test_folder_or_memory_best_or_last(tmp_path):
    scores = lambda: iter((1., 3., 2.)).__next__
    for use in ('best', 'last'):
        cfg, kept = override(CFG, use=use, monitor='score'), []
        for out in (None, tmp_path/use):
            draw = scores()
            model, validate = toy_model(), lambda m: {'score': draw()}
            history = fit(model, toy_data(), toy_loss, cfg, out, validate)
            kept.append(weights(model))
            assert history.best == dict(epoch=2, value=3.) and not model.training
        assert torch.equal(*kept)
        stored = load_weights(toy_model(), tmp_path/use/f'{use}.safetensors')
        assert torch.equal(kept[0], weights(stored))
    assert names(tmp_path/'best') == ['best.safetensors', 'history.csv', 'last.safetensors']


def test_what_is_frozen_or_unused_stays():
    model = toy_model()
    model.unused = torch.nn.Linear(2, 2)
    model[0].requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    used = lambda m, b: toy_loss(m[:4], b)
    fit(model, toy_data(), used, override(CFG, weight_decay=.1))
    same = {n for n, t in model.state_dict().items() if torch.equal(t, before[n])}
    assert same == {'0.weight', '0.bias', 'unused.weight', 'unused.bias'}


def test_validation_may_draw_numbers():
    a, b = toy_model(), toy_model()
    fit(a, toy_data(), toy_loss, CFG)
    fit(b, toy_data(), toy_loss, CFG, validate=lambda m: {'noise': torch.rand(()).item()})
    assert torch.equal(weights(a), weights(b))


def test_loss_of_the_validation_data_is_monitored_if_measured():
    draw = iter((3., 2., 4.)).__next__
    history = fit(toy_model(), toy_data(), toy_loss, CFG, validate=lambda m: {'loss': draw()})
    assert history.best == dict(epoch=2, value=2.)
    assert list(history.curve('loss')) == [3., 2., 4.]


# --- what users hand in ---

def batches_of(*batches):
    ones = torch.ones(1, 5, 9)
    return SimpleNamespace(batches=lambda epoch: list(batches), collate=lambda items: ones)

def steep(model, batch): # 0, with an infinite gradient
    return sum((p - p.detach()).abs().sqrt().sum() for p in model.parameters()), 1

ROUGE = override(CFG, monitor='rouge')

@pytest.mark.parametrize('change,says', [
    (dict(data=batches_of()), 'data: epoch 0 has no batches'),
    (dict(data=batches_of([0], [])), 'empty or over 6 items'),
    (dict(data=toy_data(40, 10)), 'empty or over 6 items'),
    (dict(cfg=ROUGE), "'rouge' is never measured"),
    (dict(cfg=ROUGE, validate=lambda m: {'rougeL': 1.}), "did you mean 'rougeL'"),
    (dict(cfg=ROUGE, validate=lambda m: {'rouge': math.nan}), 'rouge is nan after epoch 1'),
    (dict(cfg=override(CFG, warmup=4000)), 'do not fit into a run of 21'),
    (dict(model=toy_model().requires_grad_(False)), 'no parameter is to learn'),
    (dict(loss=lambda m, b: (torch.tensor(1.), 1)), 'does not depend on any parameter'),
    (dict(loss=lambda m, b: (toy_loss(m, b)[0], 0)), 'step 1 (epoch 1): the loss counts nothing'),
    (dict(loss=lambda m, b: (toy_loss(m, b)[0] * math.inf, 1)),
     'step 1 (epoch 1): the loss is inf'),
    (dict(loss=steep), 'the norm of the gradient is')])
def test_one_clear_sentence(change, says):
    args = dict(model=toy_model(), data=toy_data(), loss=toy_loss, cfg=CFG) | change
    with pytest.raises(DataError) as e: fit(**args)
    assert says in str(e.value)


def test_batches_that_change():
    count = iter(range(99))
    data = toy_data()
    batches = data.batches
    data.batches = lambda epoch: batches(epoch)[:7 - (next(count) > 5)]
    with pytest.raises(DataError, match='function of the epoch alone'):
        fit(toy_model(), data, toy_loss, CFG)


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_nan_leaves_the_last_checkpoint_alone(tmp_path, where):
    def loss(model, batch):
        calls.append(1)
        total, count = toy_loss(model, batch)
        if len(calls) == 11 and where == 'loss': total = total * math.nan
        if len(calls) == 11 and where == 'gradient': total = total + steep(model[0], batch)[0]
        return total, count
    calls, model = [], toy_model()
    with pytest.raises(DataError, match=r'step 11 \(epoch 2\): the (loss|norm of the gradient) is'):
        fit(model, toy_data(), loss, CFG, tmp_path)
    tensors, state = load_checkpoint(tmp_path/'last.safetensors')
    assert state['step'] == 9 and weights(model).isfinite().all()
    assert all(t.isfinite().all() for t in tensors.values())
    assert names(tmp_path) == ['best.safetensors', 'history.csv', 'last.safetensors']


# --- checkpoints ---

def odd_model(table, buffers):
    model = torch.nn.ModuleDict(dict(norm=torch.nn.BatchNorm1d(4), rnn=torch.nn.LSTM(3, 4)))
    model.table = torch.nn.Parameter(table)
    for name, t in buffers.items(): model.register_buffer(name, t)
    return model

def test_models_with_buffers_views_and_odd_strides(tmp_path):
    base, path = torch.randn(10), tmp_path/'a.safetensors'
    views = dict(head=base[:3], tail=base[5:], empty=torch.zeros(0, 4))
    model = odd_model(torch.randn(4, 6).t(), views)
    model['norm'](torch.randn(8, 4))
    save_checkpoint(path, model)
    assert path.stat().st_size < 4000
    other = odd_model(torch.zeros(6, 4), {n: torch.zeros(t.shape) for n, t in views.items()})
    assert torch.equal(weights(load_weights(other, path)), weights(model))
    assert other['norm'].num_batches_tracked == 1


@pytest.mark.parametrize('keep', [0, 1, 7, 8, 100, -1])
def test_truncated(tmp_path, keep):
    path = tmp_path/'a.safetensors'
    save_checkpoint(path, toy_model())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match='not a whole safetensors file'): load_checkpoint(path)


@pytest.mark.parametrize('old_zip', [True, False])
def test_pickles_are_not_opened(tmp_path, old_zip):
    path = tmp_path/'model.pt'
    torch.save(toy_model().state_dict(), path, _use_new_zipfile_serialization=old_zip)
    with pytest.raises(DataError, match='is a pickle, and opening one can run any code'):
        load_weights(toy_model(), path)


def test_files_from_elsewhere(tmp_path):
    from safetensors.torch import save_file
    plain, run = tmp_path/'plain.safetensors', tmp_path/'run'
    save_file(dict(toy_model().state_dict()), plain)
    assert torch.equal(weights(load_weights(toy_model(seed=1), plain)), weights(toy_model()))
    with pytest.raises(DataError, match='no such file'): load_checkpoint(tmp_path)
    with pytest.raises(DataError, match='of another shape: 0.weight'):
        load_weights(toy_model(width=8), plain)
    run.mkdir()
    os.rename(plain, run/'last.safetensors')
    with pytest.raises(DataError, match='holds no training that could go on'):
        fit(toy_model(), toy_data(), toy_loss, CFG, run)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(DataError, match='choose another folder'):
        fit(toy_model(), toy_data(), toy_loss, CFG, tmp_path/'file'/'run')


def test_full_disk(tmp_path):
    path, old = tmp_path/'a.safetensors', resource.getrlimit(resource.RLIMIT_FSIZE)
    save_checkpoint(path, toy_model())
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1])) # no file may grow beyond that
    try:
        with pytest.raises(DataError, match='cannot be written'):
            save_checkpoint(path, toy_model(width=999))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(tmp_path) == ['a.safetensors']
    assert torch.equal(weights(load_weights(toy_model(seed=1), path)), weights(toy_model()))


# --- going on ---

def test_other_runs_do_not_go_on(tmp_path):
    fit(toy_model(), toy_data(), toy_loss, CFG, tmp_path)
    before = (tmp_path/'last.safetensors').read_bytes()
    here = dict(model=toy_model(), data=toy_data(), loss=toy_loss, cfg=CFG, out=tmp_path)
    for change, says in (
            (dict(cfg=override(CFG, lr=.01)), 'cfg.lr is 0.02 there and 0.01 here'),
            (dict(note='stage 2'), "note is '' there"),
            (dict(data=toy_data(36)), 'items is 40 there and 36 here'),
            (dict(model=toy_model(width=8)), '0.weight (16, 8) instead of (8, 8)'),
            (dict(model=torch.nn.Linear(8, 3)),
             'missing: weight, bias; unexpected: 0.bias, 0.weight')):
        args = here | change
        with pytest.raises(DataError) as e: fit(**args)
        assert says in str(e.value) and 'last.safetensors' in str(e.value)
    assert (tmp_path/'last.safetensors').read_bytes() == before


def test_validation_that_fails_costs_no_training(tmp_path, straight):
    calls = []
    def loss(model, batch):
        calls.append(1)
        return toy_loss(model, batch)
    def broken(model): raise KeyError('no references')
    with pytest.raises(KeyError):
        fit(toy_model(), toy_data(), loss, CFG, tmp_path, validate=broken)
    model = toy_model(seed=3)
    fit(model, toy_data(), loss, CFG, tmp_path, validate=lambda m: {'score': 1.})
    assert len(calls) == 21 and torch.equal(weights(model), straight)


def test_patience_survives_an_interruption(tmp_path):
    cfg = override(CFG, epochs=9, warmup=0, patience=3, monitor='score')
    def stop(n):
        scores = itertools.count(start=-n, step=-1) # ever worse
        def validate(model):
            if (s := next(scores)) == -2 and not n: raise KeyboardInterrupt
            return {'score': s}
        return validate
    go = lambda n: fit(toy_model(), toy_data(), toy_loss, cfg, tmp_path, validate=stop(n))
    with pytest.raises(KeyboardInterrupt): go(0)
    assert len(go(2).curve('score')) == 4


def child(action, out, launcher=()):
    "This file in a process of its own."
    env = os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads()))
    command = [sys.executable, *launcher, __file__, action, str(out)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def test_killed_in_the_middle_of_an_epoch(tmp_path, straight):
    p = child('slow', tmp_path)
    while p.poll() is None and not (tmp_path/'last.safetensors').exists(): time.sleep(.01)
    time.sleep(.1 + .2 * os.urandom(1)[0] / 256) # three to eight updates later
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL, p.stdout.read()
    assert 0 < load_checkpoint(tmp_path/'last.safetensors')[1]['step'] < 21
    model = toy_model(seed=7)
    history = fit(model, toy_data(), toy_loss, CFG, tmp_path)
    assert torch.equal(weights(model), straight) and len(history.curve('loss')) == 3


def test_killed_while_writing(tmp_path, straight):
    p = child('half', tmp_path)
    assert p.wait() == -signal.SIGKILL, p.stdout.read()
    assert any(n.endswith('.tmp') for n in names(tmp_path))
    assert load_checkpoint(tmp_path/'last.safetensors')[1]['step'] == 6
    model = toy_model(seed=7)
    fit(model, toy_data(), toy_loss, CFG, tmp_path)
    assert torch.equal(weights(model), straight)
    assert names(tmp_path) == ['best.safetensors', 'history.csv', 'last.safetensors']


@pytest.mark.slow
def test_two_processes(tmp_path):
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    p = child('two', tmp_path, launcher)
    printed = p.communicate(timeout=120)[0]
    assert p.returncode == 0, printed
    told = json.loads((tmp_path/'told.json').read_text())
    assert told['processes'] == 2
    for name, (data, cfg) in two_processes().items():
        model = uneven_model()
        history = fit(model, data, uneven_loss, cfg, validate=norm_of)
        loss, norm = list(history.curve('loss', 'train')), list(history.curve('norm'))
        assert told[name]['loss'] == pytest.approx(loss, abs=1e-5), name
        assert told[name]['norm'] == pytest.approx(norm, abs=1e-4), name
        stored = load_weights(uneven_model(), tmp_path/name/'last.safetensors')
        assert torch.allclose(weights(model), weights(stored), atol=1e-4)


def norm_of(model): return {'norm': weights(model).norm().item()}


def two_processes():
    """Batches of 6 and a last one of 1, which leaves one process without a share; with and without
    micro-batches."""
    data, stops = toy_data(37), override(CFG, patience=1, epochs=4, monitor='norm')
    return dict(whole=(data, CFG), micro=(data, override(CFG, micro_batch=2)), stops=(data, stops))


def uneven_model():
    model = toy_model(0.)
    model.rare = torch.nn.Linear(3, 3) # used for some items only
    return model


def uneven_loss(model, batch):
    rare = batch[:, 0, 0] > 1.2 # b
    total, count = toy_loss(model[:4], batch[~rare])
    if not rare.any(): return total, count
    more, further = toy_loss(lambda x: model.rare(model[:4](x)), batch[rare])
    return total + more, count + further


def main(action, out):
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    if action == 'slow':
        calls = itertools.count()
        def loss(model, batch):
            time.sleep(.04 if next(calls) < 12 else 60)
            return toy_loss(model, batch)
        fit(toy_model(), toy_data(), loss, CFG, out)
    if action == 'half':
        import safetensors.torch as st
        whole, calls = st.save_file, []
        def half(tensors, path, metadata):
            whole(tensors, path, metadata)
            calls.append(1)
            if len(calls) == 3:
                Path(path).write_bytes(Path(path).read_bytes()[:2000])
                os.kill(os.getpid(), signal.SIGKILL)
        st.save_file = half
        fit(toy_model(), toy_data(), toy_loss, CFG, out)
    if action == 'two':
        told = {}
        for name, (data, cfg) in two_processes().items():
            model = uneven_model()
            for p in model.parameters():
                p.data += int(os.environ['RANK']) # the main process's weights count
            history = fit(model, data, uneven_loss, cfg, Path(out)/name, norm_of)
            nothing = None if cfg.monitor == 'loss' else lambda m: {}
            again = fit(uneven_model(), data, uneven_loss, cfg, Path(out)/name, nothing)
            assert again.rows == history.rows
            told[name] = dict(loss=list(history.curve('loss', 'train')),
                              norm=list(history.curve('norm')))
        told['processes'] = torch.distributed.get_world_size()
        if os.environ['RANK'] == '0': (Path(out)/'told.json').write_text(json.dumps(told))


if __name__ == '__main__': main(*sys.argv[1:])
