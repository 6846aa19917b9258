"Training: bad configurations and data, damaged and foreign checkpoints, runs that are killed, several processes."
import itertools, json, math, os, resource, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mcls_nb.core import DataError, override, stream_seed
from mcls_nb.training import FitConfig, _parts, fit, load_checkpoint, load_weights, lr_at, save_checkpoint

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
        order = torch.randperm(n, generator=torch.Generator().manual_seed(stream_seed('toy', epoch))).tolist()
        return [order[i:i + size] for i in range(0, n, size)]
    return SimpleNamespace(batches=batches, collate=lambda chosen: items[chosen], items=items)


def toy_model(dropout=.2, width=16, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(width, 3))


def toy_loss(model, batch):
    y = batch[..., -1].long()
    return F.cross_entropy(model(batch[..., :-1]).flatten(0, 1), y.flatten(), reduction='sum'), (y >= 0).sum()


def weights(model): return torch.cat([t.detach().double().flatten() for t in model.state_dict().values()])


def names(folder): return sorted(p.name for p in Path(folder).iterdir())


@pytest.fixture(scope='module')
def straight():
    "Weights of a run that nothing interrupts."
    model = toy_model()
    fit(model, toy_data(), toy_loss, CFG)
    return weights(model)


# --- configuration and schedule ---

@pytest.mark.parametrize('change', [dict(epochs=0), dict(batch_size=0), dict(micro_batch=-1), dict(lr=0.), dict(lr=math.nan),
    dict(lr=math.inf), dict(betas=(.9, 1.)), dict(betas=(.9,)), dict(eps=0.), dict(weight_decay=-1.), dict(warmup=-.1), dict(warmup=2.5),
    dict(warmup=math.nan), dict(min_lr_ratio=1.1), dict(clip=-1.), dict(bf16='maybe'), dict(patience=-1), dict(checkpoint_every=-1), dict(use='first')])
def test_impossible_values(change):
    with pytest.raises(DataError, match=f'parameter {next(iter(change))}'): FitConfig(**change)


@pytest.mark.parametrize('total,warmup,floor', list(itertools.product((1, 2, 7, 100), (0., .01, .3, .5, .99, 1, 5), (0., .2, 1.))))
def test_schedule(total, warmup, floor):
    cfg = FitConfig(lr=1., warmup=warmup, min_lr_ratio=floor)
    if warmup >= 1 and warmup >= total:
        with pytest.raises(DataError, match='do not fit'): lr_at(0, total, cfg)
        return
    rates = [round(lr_at(s, total, cfg), 12) for s in range(total)]
    assert max(rates) == 1 and min(rates) > 0
    peak = rates.index(1)
    assert rates[:peak + 1] == sorted(rates[:peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] >= floor or rates[-1] == rates[peak]


@pytest.mark.parametrize('n,processes,micro', list(itertools.product((1, 2, 5, 8), (1, 2, 3), (0, 1, 3, 99))))
def test_parts_are_the_batch(n, processes, micro):
    parts = [_parts(list(range(n)), p, processes, micro) for p in range(processes)]
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
    a, b = [fit(toy_model(0.), toy_data(), toy_loss, override(CFG, bf16=bf16)).curve('loss') for bf16 in ('no', 'yes')]
    assert 0 < (a - b).abs().max() < .05


def test_folder_or_memory_best_or_last(tmp_path):
    scores = lambda: iter((1., 3., 2.)).__next__
    for use in ('best', 'last'):
        cfg, kept = override(CFG, use=use, monitor='score'), []
        for out in (None, tmp_path/use):
            draw = scores()
            model = toy_model()
            history = fit(model, toy_data(), toy_loss, cfg, out, validate=lambda m: {'score': draw()})
            kept.append(weights(model))
            assert history.best == dict(epoch=2, value=3.) and not model.training
        assert torch.equal(*kept)
        assert torch.equal(kept[0], weights(load_weights(toy_model(), tmp_path/use/f'{use}.safetensors')))
    assert names(tmp_path/'best') == ['best.safetensors', 'history.csv', 'last.safetensors']


def test_what_is_frozen_or_unused_stays():
    model = toy_model()
    model.unused = torch.nn.Linear(2, 2)
    model[0].requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    fit(model, toy_data(), lambda m, b: toy_loss(m[:4], b), override(CFG, weight_decay=.1))
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
    assert history.best == dict(epoch=2, value=2.) and list(history.curve('loss')) == [3., 2., 4.]


# --- what users hand in ---

@pytest.mark.parametrize('change,says', [
    (dict(data=SimpleNamespace(batches=lambda e: [], collate=None)), 'data: epoch 0 has no batches'),
    (dict(data=SimpleNamespace(batches=lambda e: [[0], []], collate=lambda i: torch.ones(1, 5, 9))), 'empty or over 6 items'),
    (dict(data=toy_data(40, 10)), 'empty or over 6 items'),
    (dict(cfg=override(CFG, monitor='rouge')), "'rouge' is never measured"),
    (dict(cfg=override(CFG, monitor='rouge'), validate=lambda m: {'rougeL': 1.}), "did you mean 'rougeL'"),
    (dict(cfg=override(CFG, monitor='rouge'), validate=lambda m: {'rouge': math.nan}), 'rouge is nan after epoch 1'),
    (dict(cfg=override(CFG, warmup=4000)), 'do not fit into a run of 21'),
    (dict(model=toy_model().requires_grad_(False)), 'no parameter is to learn'),
    (dict(loss=lambda m, b: (torch.tensor(1.), 1)), 'does not depend on any parameter'),
    (dict(loss=lambda m, b: (toy_loss(m, b)[0], 0)), 'step 1 (epoch 1): the loss counts nothing'),
    (dict(loss=lambda m, b: (toy_loss(m, b)[0] * math.inf, 1)), 'step 1 (epoch 1): the loss is inf'),
    (dict(loss=lambda m, b: (sum((p - p.detach()).abs().sqrt().sum() for p in m.parameters()), 1)), 'the norm of the gradient is')])
def test_one_clear_sentence(change, says):
    args = dict(model=toy_model(), data=toy_data(), loss=toy_loss, cfg=CFG) | change
    with pytest.raises(DataError) as e: fit(**args)
    assert says in str(e.value)


def test_batches_that_change():
    count = iter(range(99))
    data = toy_data()
    batches = data.batches
    data.batches = lambda epoch: batches(epoch)[:7 - (next(count) > 5)]
    with pytest.raises(DataError, match='function of the epoch alone'): fit(toy_model(), data, toy_loss, CFG)


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_nan_leaves_the_last_checkpoint_alone(tmp_path, where):
    def loss(model, batch):
        calls.append(1)
        total, count = toy_loss(model, batch)
        root = (model[0].bias - model[0].bias.detach()).abs().sqrt().sum() # 0, with an infinite gradient
        return total * math.nan if where == 'loss' and len(calls) == 11 else total + root if len(calls) == 11 else total, count
    calls, model = [], toy_model()
    with pytest.raises(DataError, match=r'step 11 \(epoch 2\): the (loss|norm of the gradient) is'):
        fit(model, toy_data(), loss, CFG, tmp_path)
    tensors, state = load_checkpoint(tmp_path/'last.safetensors')
    assert state['step'] == 9 and all(t.isfinite().all() for t in tensors.values()) and weights(model).isfinite().all()
    assert names(tmp_path) == ['best.safetensors', 'history.csv', 'last.safetensors']


# --- checkpoints ---

def test_models_with_buffers_views_and_odd_strides(tmp_path):
    model = torch.nn.ModuleDict(dict(norm=torch.nn.BatchNorm1d(4), rnn=torch.nn.LSTM(3, 4)))
    model.table = torch.nn.Parameter(torch.randn(4, 6).t())
    base = torch.randn(10)
    model.register_buffer('head', base[:3])
    model.register_buffer('tail', base[5:])
    model.register_buffer('empty', torch.zeros(0, 4))
    model['norm'](torch.randn(8, 4))
    save_checkpoint(tmp_path/'a.safetensors', model)
    assert (tmp_path/'a.safetensors').stat().st_size < 4000
    other = torch.nn.ModuleDict(dict(norm=torch.nn.BatchNorm1d(4), rnn=torch.nn.LSTM(3, 4)))
    other.table = torch.nn.Parameter(torch.zeros(6, 4))
    for name, n in dict(head=(3,), tail=(5,), empty=(0, 4)).items(): other.register_buffer(name, torch.zeros(n))
    assert torch.equal(weights(load_weights(other, tmp_path/'a.safetensors')), weights(model)) and other['norm'].num_batches_tracked == 1


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
    with pytest.raises(DataError, match='is a pickle, and opening one can run any code'): load_weights(toy_model(), path)


def test_files_from_elsewhere(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(toy_model().state_dict()), tmp_path/'plain.safetensors')
    assert torch.equal(weights(load_weights(toy_model(seed=1), tmp_path/'plain.safetensors')), weights(toy_model()))
    with pytest.raises(DataError, match='no such file'): load_checkpoint(tmp_path)
    with pytest.raises(DataError, match='of another shape: 0.weight'): load_weights(toy_model(width=8), tmp_path/'plain.safetensors')
    (tmp_path/'run').mkdir()
    os.rename(tmp_path/'plain.safetensors', tmp_path/'run'/'last.safetensors')
    with pytest.raises(DataError, match='holds no training that could go on'): fit(toy_model(), toy_data(), toy_loss, CFG, tmp_path/'run')


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(DataError, match='choose another folder'): fit(toy_model(), toy_data(), toy_loss, CFG, tmp_path/'file'/'run')


def test_full_disk(tmp_path):
    path, old = tmp_path/'a.safetensors', resource.getrlimit(resource.RLIMIT_FSIZE)
    save_checkpoint(path, toy_model())
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1])) # no file may grow beyond that
    try:
        with pytest.raises(DataError, match='cannot be written'): save_checkpoint(path, toy_model(width=999))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(tmp_path) == ['a.safetensors'] and torch.equal(weights(load_weights(toy_model(seed=1), path)), weights(toy_model()))


# --- going on ---

def test_other_runs_do_not_go_on(tmp_path):
    fit(toy_model(), toy_data(), toy_loss, CFG, tmp_path)
    before = (tmp_path/'last.safetensors').read_bytes()
    for change, says in ((dict(cfg=override(CFG, lr=.01)), 'cfg.lr is 0.02 there and 0.01 here'),
                         (dict(note='stage 2'), "note is '' there"),
                         (dict(data=toy_data(36)), 'items is 40 there and 36 here'),
                         (dict(model=toy_model(width=8)), '0.weight (16, 8) instead of (8, 8)'),
                         (dict(model=torch.nn.Linear(8, 3)), 'missing: weight, bias; unexpected: 0.bias, 0.weight')):
        args = dict(model=toy_model(), data=toy_data(), loss=toy_loss, cfg=CFG, out=tmp_path) | change
        with pytest.raises(DataError) as e: fit(**args)
        assert says in str(e.value) and 'last.safetensors' in str(e.value)
    assert (tmp_path/'last.safetensors').read_bytes() == before


def test_validation_that_fails_costs_no_training(tmp_path, straight):
    calls = []
    def loss(model, batch):
        calls.append(1)
        return toy_loss(model, batch)
    def broken(model): raise KeyError('no references')
    with pytest.raises(KeyError): fit(toy_model(), toy_data(), loss, CFG, tmp_path, validate=broken)
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
    with pytest.raises(KeyboardInterrupt): fit(toy_model(), toy_data(), toy_loss, cfg, tmp_path, validate=stop(0))
    assert len(fit(toy_model(), toy_data(), toy_loss, cfg, tmp_path, validate=stop(2)).curve('score')) == 4


def child(action, out, launcher=()):
    "This file in a process of its own."
    env = os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads()))
    return subprocess.Popen([sys.executable, *launcher, __file__, action, str(out)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


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
    p = child('two', tmp_path, ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'])
    printed = p.communicate(timeout=120)[0]
    assert p.returncode == 0, printed
    told = json.loads((tmp_path/'told.json').read_text())
    assert told['processes'] == 2
    for name, (data, cfg) in two_processes().items():
        model = uneven_model()
        history = fit(model, data, uneven_loss, cfg, validate=lambda m: {'norm': weights(m).norm().item()})
        loss, norm = history.curve('loss', 'train'), history.curve('norm')
        assert told[name]['loss'] == pytest.approx(list(loss), abs=1e-5) and told[name]['norm'] == pytest.approx(list(norm), abs=1e-4), name
        assert torch.allclose(weights(model), weights(load_weights(uneven_model(), tmp_path/name/'last.safetensors')), atol=1e-4)


def two_processes():
    "Batches of 6 and a last one of 1, which leaves one process without a share; with and without micro-batches."
    data = toy_data(37)
    return dict(whole=(data, CFG), micro=(data, override(CFG, micro_batch=2)), stops=(data, override(CFG, patience=1, epochs=4, monitor='norm')))


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
            for p in model.parameters(): p.data += int(os.environ['RANK']) # the main process's weights count
            history = fit(model, data, uneven_loss, cfg, Path(out)/name, validate=lambda m: {'norm': weights(m).norm().item()})
            again = fit(uneven_model(), data, uneven_loss, cfg, Path(out)/name, validate=None if cfg.monitor == 'loss' else lambda m: {})
            assert again.rows == history.rows
            told[name] = dict(loss=list(history.curve('loss', 'train')), norm=list(history.curve('norm')))
        told['processes'] = torch.distributed.get_world_size()
        if os.environ['RANK'] == '0': (Path(out)/'told.json').write_text(json.dumps(told))


if __name__ == '__main__': main(*sys.argv[1:])
