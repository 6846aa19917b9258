"Pooling and warping against plain loops over many sizes and masks; softened scores; bad input."
import math

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mcls_nb.batching import length_mask
from mcls_nb.core import DataError
from mcls_nb.distill import (align_pool, consolidate, kd_loss, kd_sum, soft_dtw, soft_dtw_cost,
                             squared_distances)
from mcls_nb.training import FitConfig, fit

DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
devices = pytest.mark.parametrize('device', DEVICES)
SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 5), (40, 2), (3, 30), (9, 8), (8, 9)]
sizes = pytest.mark.parametrize('n, m', SIZES)


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def close(a, b, tolerance=1e-10):
    assert a.shape == b.shape and torch.isfinite(a).all()
    off = (a - b).abs().max()
    assert off <= tolerance * max(1., b.abs().max().item()), f'off by {off:.2e}'

def some_masks(b, n):
    "Random masks with holes, the first with all steps and the second with a single one."
    mask = torch.rand(b, n) < .6
    mask[0], mask[1], mask[:, n // 2] = True, False, True
    return mask


def junk(x, mask, extra):
    "NaN where there is padding, and `extra` steps of infinity behind it."
    return F.pad(x.masked_fill(~mask[..., None], math.nan), (0, 0, 0, extra), value=math.inf)


# --- pooling

def pool_alone(x, mask, t): return F.adaptive_avg_pool1d(x[mask].T, t).T

@devices
@sizes
def test_pool_is_torchs_pooling_of_each_sample(n, m, device):
    x, mask = torch.randn(6, n, 3, device=device).double(), some_masks(6, n).to(device)
    t = torch.randint(1, m + 1, (6,)).to(device)
    x.requires_grad_()
    for length in (t, m):
        for only in (mask, None): assert align_pool(x, length, only).shape[::2] == (6, 3)
    close(align_pool(x, m), F.adaptive_avg_pool1d(x.transpose(1, 2), m).transpose(1, 2))
    out, g = align_pool(x, t, mask), torch.randn(6, int(t.max()), 3, device=device).double()
    alone = [pool_alone(x[i], mask[i], int(t[i])) for i in range(6)]
    for i, a in enumerate(alone):
        close(out[i, :len(a)], a)
        assert not out[i, len(a):].any()
    ours, = torch.autograd.grad((out * g).sum(), x)
    theirs, = torch.autograd.grad(sum((a * g[i, :len(a)]).sum() for i, a in enumerate(alone)), x)
    close(ours, theirs)
    assert not ours[~mask].any()

@pytest.mark.parametrize('s', range(1, 14))
def test_pool_from_and_to_every_length(s):
    x = torch.randn(20, s, 2)
    out = align_pool(x, torch.arange(1, 21))
    for t in range(1, 21): close(out[t - 1, :t], F.adaptive_avg_pool1d(x[t - 1].T, t).T, 1e-6)

@pytest.mark.parametrize('dtype, tolerance', [
    (torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, .01), (torch.float16, 2e-3)])
def test_pool_keeps_the_precision(dtype, tolerance):
    x, mask = torch.randn(3, 9, 4), some_masks(3, 9)
    out = align_pool(x.to(dtype), 4, mask)
    assert out.dtype == dtype
    close(out.double(), align_pool(x.double(), 4, mask), tolerance)

def test_pool_and_padding():
    x, mask, t = torch.randn(3, 5, 2), length_mask([5, 2, 3]), torch.tensor([4, 4, 1])
    longer = junk(x, mask, 6)
    assert torch.equal(align_pool(longer, t, F.pad(mask, (0, 6))), align_pool(x, t, mask))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: align_pool(x, t, mask), x.double())


# --- warping

def loop(D, gamma, x_mask=None, y_mask=None):
    "One sample by two loops, in double precision; its gradient comes from autograd."
    if x_mask is not None: D = D[x_mask][:, y_mask]
    R = {(-1, -1): D.new_zeros(())}
    for i in range(D.shape[0]):
        for j in range(D.shape[1]):
            before = [R[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in R]
            R[i, j] = D[i, j] - gamma * (-torch.stack(before) / gamma).logsumexp(0)
    return R[i, j]

def outer(x, y): return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)

def grads(value, *inputs):
    weights = torch.arange(1., len(value) + 1, device=value.device)
    return torch.autograd.grad((value * weights).sum(), inputs, retain_graph=True)

@devices
@sizes
@pytest.mark.parametrize('gamma', [.05, 1., 30.])
def test_warping_is_the_two_loops(n, m, gamma, device):
    x, y = (torch.randn(4, k, 3, dtype=torch.float64, device=device, requires_grad=True)
            for k in (n, m))
    x_mask, y_mask = some_masks(4, n).to(device), some_masks(4, m).to(device)
    ours = soft_dtw(x, y, gamma, x_mask, y_mask)
    theirs = [loop(outer(x[i], y[i]), gamma, x_mask[i], y_mask[i]) for i in range(4)]
    theirs = torch.stack(theirs)
    close(ours, theirs)
    for a, b in zip(grads(ours, x, y), grads(theirs, x, y)): close(a, b, 1e-9)
    swapped = soft_dtw(y, x, gamma, y_mask, x_mask)
    close(swapped, ours)
    for a, b in zip(grads(swapped, x, y), grads(ours, x, y)): close(a, b)
    with torch.no_grad(): assert torch.equal(soft_dtw(x, y, gamma, x_mask, y_mask), ours)

@sizes
@pytest.mark.parametrize('gamma', [1e-3, 1., 1e4])
def test_gradient_is_a_probability(n, m, gamma):
    D = (torch.rand(3, n, m, dtype=torch.float64) * 10).requires_grad_()
    a, b = torch.tensor([n, 1, (n + 1) // 2]), torch.tensor([m, (m + 1) // 2, 1])
    E, = torch.autograd.grad(soft_dtw_cost(D, gamma, a, b).sum(), D)
    inside = (torch.arange(n)[:, None] < a[:, None, None])
    inside = inside & (torch.arange(m) < b[:, None, None])
    assert not E[~inside].any() and (E >= 0).all() and (E <= 1 + 1e-9).all()
    one = torch.ones(3, dtype=torch.float64)
    close(E[:, 0, 0], one)
    close(E[range(3), a - 1, b - 1], one) # every path passes both ends,
    for steps, size in ((E.sum(2), a), (E.sum(1), b)): # and every step
        assert (steps[length_mask(size, steps.shape[1])] >= 1 - 1e-9).all()

def in_band(n, m, w):
    def fits(i, j): return abs(i * (m - 1) - j * (n - 1)) <= w * (max(n, m) - 1)
    return torch.tensor([[fits(i, j) for j in range(m)] for i in range(n)])

@sizes
@pytest.mark.parametrize('width', [1, 2, 50])
def test_bands(n, m, width):
    D = torch.rand(3, n, m, dtype=torch.float64, requires_grad=True)
    a, b = [n, n, 1], [m, 1, m]
    ours = soft_dtw_cost(D, .5, a, b, width)
    banded = [D[i, :p, :q].masked_fill(~in_band(p, q, width), 1e6)
              for i, (p, q) in enumerate(zip(a, b))]
    theirs = torch.stack([loop(d, .5) for d in banded])
    close(ours, theirs)
    close(*(torch.autograd.grad(v.sum(), D)[0] for v in (ours, theirs)))
    if width == 50: close(ours, soft_dtw_cost(D, .5, a, b))

@pytest.mark.parametrize('bandwidth', [None, 1, 3])
@pytest.mark.parametrize('masked', [False, True])
def test_gradcheck(bandwidth, masked):
    x, y = (torch.randn(3, k, 2, dtype=torch.float64, requires_grad=True) for k in (6, 4))
    masks = dict(x_mask=some_masks(3, 6), y_mask=some_masks(3, 4)) if masked else {}
    def warped(x, y): return soft_dtw(x, y, .7, bandwidth=bandwidth, **masks)
    assert torch.autograd.gradcheck(warped, (x, y))
    D = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda D: soft_dtw_cost(D, .7, [5, 2], [2, 3], bandwidth), D)

def test_a_second_derivative_is_refused():
    D = torch.rand(1, 3, 3, requires_grad=True)
    with pytest.raises(DataError, match='no second derivative'):
        torch.autograd.grad(soft_dtw_cost(D).sum(), D, create_graph=True)

def test_forbidden_pairs():
    D = torch.rand(1, 3, 3, dtype=torch.float64)
    D[0, 1, 1] = math.inf
    D.requires_grad_()
    E, = torch.autograd.grad(soft_dtw_cost(D).sum(), D)
    assert E[0, 1, 1] == 0 and torch.isfinite(E).all()
    close(E, torch.autograd.grad(loop(D[0].masked_fill(D[0] == math.inf, 1e4), 1.), D)[0])
    broken = torch.full((1, 3, 3), math.nan, requires_grad=True)
    assert soft_dtw_cost(broken).isnan().all() # what is wrong is not hidden

@pytest.mark.parametrize('size', [1e-6, 1., 1e4, 1e12])
@pytest.mark.parametrize('gamma', [1e-6, 1., 1e6])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_any_scale_stays_finite(size, gamma, dtype):
    D = (torch.rand(2, 30, 20) * size).to(dtype).requires_grad_()
    value = soft_dtw_cost(D, gamma)
    E, = torch.autograd.grad(value.sum(), D)
    assert value.dtype == E.dtype == dtype
    assert torch.isfinite(value).all() and torch.isfinite(E).all()
    close(E[:, 0, 0], torch.ones(2, dtype=dtype), 1e-5)

def test_single_precision_is_enough():
    "Values of 10^5 that differ by less than gamma: a recursion in it is off by several per cent."
    x, y = (torch.randn(2, k, 256, requires_grad=True) for k in (230, 250))
    x64, y64 = (v.detach().double().requires_grad_() for v in (x, y))
    a, b = soft_dtw(x, y), soft_dtw(x64, y64)
    assert a.dtype == torch.float32 and a.min() > 5e4
    close(a.double(), b, 1e-6)
    for p, q in zip(grads(a, x, y), grads(b, x64, y64)): close(p.double(), q, 2e-4)

def test_distances():
    x, y = torch.randn(3, 7, 50, dtype=torch.float64), torch.randn(3, 5, 50, dtype=torch.float64)
    close(squared_distances(x, y), outer(x, y))
    close(squared_distances((x + 100).float(), (y + 100).float()), outer(x, y).float(), 1e-4)
    assert (squared_distances(x.float(), x.float()) >= 0).all()
    assert squared_distances(x.float(), x.float()).diagonal(dim1=1, dim2=2).max() < 1e-4

def test_padding_of_warped_sequences():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 6, 3)
    x_mask, y_mask = length_mask([5, 2]), length_mask([3, 6])
    longer = [junk(v, mask, 4).requires_grad_() for v, mask in ((x, x_mask), (y, y_mask))]
    masks = [F.pad(mask, (0, 4)) for mask in (x_mask, y_mask)]
    value = soft_dtw(*longer, 1., *masks)
    close(value, soft_dtw(x, y, 1., x_mask, y_mask), 1e-6)
    for g, mask in zip(grads(value, *longer), masks):
        assert torch.isfinite(g).all() and not g[~mask].any()

def test_memory_does_not_know_the_width():
    def kept(d):
        sizes, x, y = [], torch.randn(2, 50, d, requires_grad=True), torch.randn(2, 60, d)
        def note(tensor):
            sizes.append(tensor.numel())
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            soft_dtw(x, y, 1., length_mask([50, 40]), length_mask([60, 30]))
        return sum(sizes)
    assert kept(400) - kept(4) < 20 * 2 * 110 * 396
    assert kept(4) < 8 * 2 * 50 * 60


# --- what any device needs

class NamedDevices(TorchFunctionMode):
    "Whoever makes a tensor has to say where."
    makers = (torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.tensor,
              torch.rand)
    def __torch_function__(self, f, types, args=(), kwargs=None):
        if f in self.makers: assert 'device' in kwargs, f
        return f(*args, **kwargs or {})

def test_everything_is_made_on_the_device_of_the_inputs():
    x, y = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 4, 3)
    masks = length_mask([5, 2]), length_mask([3, 4])
    with NamedDevices():
        for args in ((), masks):
            for align in ('pool', 'warp'): kd_loss(x, y, *args, align=align).backward()
        soft_dtw(x, y, 1., *masks, bandwidth=2).sum().backward()
        consolidate(x, x, 1., torch.ones_like(x) > 0)

@pytest.mark.parametrize('align', ['pool', 'warp'])
def test_half_precision_loses_nothing_more(align):
    x, y = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    masks = length_mask([5, 2]), length_mask([3, 7])
    with torch.autocast('cpu', torch.bfloat16): inside = kd_loss(x, y, *masks, align=align)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, kd_loss(x, y, *masks, align=align))
    half = kd_loss(x.bfloat16(), y.half(), *masks, align=align)
    assert half.dtype == torch.float32
    close(half, kd_loss(x.bfloat16().float(), y.half().float(), *masks, align=align), 1e-6)


# --- the loss

@pytest.mark.parametrize('align', ['pool', 'warp'])
def test_loss_and_its_parts(align):
    (x, x_mask), (y, y_mask) = ((torch.randn(6, n, 3, requires_grad=True), some_masks(6, n))
                                for n in (7, 9))
    total, count = kd_sum(x, y, x_mask, y_mask, align)
    pieces = slice(0, 1), slice(1, 4), slice(4, 6)
    parts = [kd_sum(x[i], y[i], x_mask[i], y_mask[i], align) for i in pieces]
    assert sum(n for _, n in parts) == count
    close(sum(s for s, _ in parts), total, 1e-6)
    loss = kd_loss(x, y, x_mask, y_mask, align)
    close(loss, total / count, 1e-7)
    loss.backward()
    assert y.grad is None # the teacher learns nothing
    assert x.grad.any() and not x.grad[~x_mask].any()
    if align == 'warp':
        warped = [loop(outer(x[i], y[i]), 1., x_mask[i], y_mask[i]) for i in range(6)]
        close(loss, torch.stack(warped).mean(), 1e-5)
    else:
        pooled = [pool_alone(y[i], y_mask[i], int(x_mask[i].sum())) for i in range(6)]
        close(loss, F.smooth_l1_loss(x[x_mask], torch.cat(pooled)), 1e-6)

def test_padding_counted_as_released():
    x, y = torch.randn(3, 5, 4), torch.randn(3, 8, 4)
    masks = length_mask([5, 2, 4]), length_mask([3, 8, 1])
    pooled = F.adaptive_avg_pool1d(y.transpose(1, 2), 5).transpose(1, 2)
    close(kd_loss(x, y, *masks, pool_padded=True), F.smooth_l1_loss(x, pooled), 1e-6)
    warped = torch.stack([loop(outer(a, b), .5) for a, b in zip(x, y)])
    close(kd_loss(x, y, *masks, 'warp', gamma=.5, pool_padded=True), warped.mean(), 1e-6)

class Pairs:
    "Eight pairs: a sequence, and the same through a fixed matrix with every step twice."
    def __init__(self):
        self.x, self.mask = torch.randn(8, 5, 4), length_mask(torch.randint(1, 6, (8,)), 5)
        self.y = (self.x @ torch.randn(4, 4)).repeat_interleave(2, 1)
    def batches(self, epoch): return [list(range(8))]
    def collate(self, items):
        x, y, mask = self.x[items], self.y[items], self.mask[items]
        return torch.cat([x.flatten(1), y.flatten(1), mask.float()], 1)

@pytest.mark.parametrize('align', ['pool', 'warp'])
def test_the_trainer_can_use_it(align):
    "Micro-batches of any size teach the same, and the student comes near its teacher."
    data, models = Pairs(), []
    def loss(model, batch):
        x, y = batch[:, :20].unflatten(1, (5, 4)), batch[:, 20:60].unflatten(1, (10, 4))
        mask = batch[:, 60:] > 0
        return kd_sum(model(x), y, mask, mask.repeat_interleave(2, 1), align, gamma=.1)
    for micro in (0, 3):
        torch.manual_seed(0)
        models.append(torch.nn.Linear(4, 4))
        before = loss(models[-1], data.collate(range(8)))[0].item()
        config = FitConfig(epochs=60, lr=.1, clip=0., micro_batch=micro, use='last')
        fit(models[-1], data, loss, config)
    close(models[0].weight, models[1].weight, 1e-3)
    assert loss(models[0], data.collate(range(8)))[0] < .2 * before


# --- softened scores

@pytest.mark.parametrize('tau', [.02, 1., 30.])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_consolidation_by_loops(tau, dtype, tolerance):
    S, s = (2 * torch.rand(2, 5, 5, dtype=dtype) - 1).unbind()
    s.requires_grad_()
    mask = some_masks(5, 5) | torch.eye(5, dtype=torch.bool)
    def soften(scores, valid):
        softened = []
        for row, keep in zip(scores.tolist(), valid.tolist()):
            total = sum(math.exp(v / tau) for v, k in zip(row, keep) if k)
            softened.append([math.exp(v / tau) / total for v in row])
        return softened
    for valid in (torch.ones(5, 5, dtype=torch.bool), mask):
        T, P = soften(S, valid), soften(s, valid)
        full = []
        for t_row, p_row, keep in zip(T, P, valid.tolist()):
            full.append(-sum(t * math.log(p) for t, p, k in zip(t_row, p_row, keep) if k))
        only = None if valid.all() else valid
        close(consolidate(S, s, tau, only), torch.tensor(full, dtype=dtype), tolerance)
        positive = torch.tensor([-T[i][i] * math.log(P[i][i]) for i in range(5)], dtype=dtype)
        close(consolidate(S, s, tau, only, 'diagonal'), positive, tolerance)
        g, = torch.autograd.grad(consolidate(S, s, tau, only).sum(), s)
        assert not g[~valid].any()
        P, T = (torch.tensor(v, dtype=torch.float64) for v in (P, T))
        close(g, ((P - T) / tau).to(dtype) * valid, 10 * tolerance)

def test_consolidation_of_any_shape():
    S, s, mask = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6), length_mask([6, 1, 3, 4], 6)
    out = consolidate(S, s, .3, mask)
    assert out.shape == (2, 3, 4) and torch.isfinite(out).all()
    close(out[1, 2, 2], consolidate(S[1, 2, 2, :3], s[1, 2, 2, :3], .3), 1e-5)
    assert not out[:, :, 1].any() # one item: nothing to choose
    square = consolidate(S[..., :4], s[..., :4], .3, reading='diagonal')
    close(square[1, 2], consolidate(S[1, 2, :, :4], s[1, 2, :, :4], .3, reading='diagonal'), 1e-6)

@pytest.mark.parametrize('far', [1e2, 1e6, 1e30])
def test_consolidation_of_extreme_scores(far):
    S, s = torch.tensor([[far, -far, 0.]]), torch.tensor([[-far, far, 0.]], requires_grad=True)
    value = consolidate(S, s, .02, torch.tensor([True, True, False]))
    value.sum().backward()
    close(value, torch.tensor([2 * far / .02]), 1e-6)
    close(s.grad, torch.tensor([[-1., 1., 0.]]) / .02, 1e-6)

def test_consolidation_leaves_the_teacher_alone():
    S = torch.randn(2, 3, requires_grad=True)
    assert not consolidate(S, torch.randn(2, 3), 1.).requires_grad
    assert consolidate(S.bfloat16(), torch.randn(2, 3).half(), 1.).dtype == torch.float32


# --- bad input

x, y, D, S = torch.zeros(2, 5, 3), torch.zeros(2, 4, 3), torch.zeros(2, 5, 4), torch.zeros(2, 2)
ok, empty = torch.ones(2, 5, dtype=torch.bool), length_mask([5, 0], 5)
BAD = {
    'gamma is 0.0': lambda: soft_dtw(x, y, 0.),
    'gamma is -1': lambda: soft_dtw_cost(D, -1),
    'gamma is nan': lambda: soft_dtw(x, y, math.nan),
    'gamma is inf': lambda: kd_loss(x, y, align='warp', gamma=math.inf),
    'a bandwidth of 0 leaves no path': lambda: soft_dtw(x, y, bandwidth=0),
    'width 3 cannot be compared with states of width 2': lambda: soft_dtw(x, y[..., :2]),
    'width 2 cannot be compared with states of width 3': lambda: kd_loss(x[..., :2], y),
    '2 sequences cannot be compared with 1': lambda: soft_dtw(x, y[:1]),
    '1 sequences cannot be compared with 2': lambda: kd_loss(x[:1], y),
    'soft_dtw: a sequence has no valid step': lambda: soft_dtw(x, y, x_mask=empty),
    'kd_loss: a sequence has no valid step': lambda: kd_loss(x, y, empty),
    'align_pool: a sequence has no valid step': lambda: align_pool(x, 3, empty),
    'soft_dtw: there is no step': lambda: soft_dtw(x, y[:, :0]),
    'kd_loss: there is no step': lambda: kd_loss(x[:0], y[:0]),
    'a length is not positive': lambda: align_pool(x, 0),
    'a length is not within': lambda: soft_dtw_cost(D, 1., [6, 1]),
    'a length is not within the table': lambda: soft_dtw_cost(D, 1., [5, 5], [0, 4]),
    'batch, rows, columns': lambda: soft_dtw_cost(D[0]),
    '3 lengths do not fit 2 samples': lambda: align_pool(x, torch.tensor([1, 2, 3])),
    r'a mask of \(2, 4\) does not fit states of \(2, 5, 3\)': lambda: kd_loss(x, y, ok[:, :4]),
    'the mask is torch.float32': lambda: align_pool(x, 2, ok.float()),
    'batch, time, width': lambda: soft_dtw(x[0], y[0]),
    "no value of align 'wrap'": lambda: kd_loss(x, y, align='wrap'),
    "no reading 'diag'": lambda: consolidate(S, S, 1., reading='diag'),
    'tau is 0': lambda: consolidate(S, S, 0),
    'tau is nan': lambda: consolidate(S, S, math.nan),
    'no diagonal': lambda: consolidate(D, D, 1., reading='diagonal'),
    r"the teacher's scores are \(2, 2\)": lambda: consolidate(S, S[:1], 1.),
    'float32 mask of': lambda: consolidate(S, S, 1., S),
    r'mask of \(5,\) does not fit scores of \(2, 2\)': lambda: consolidate(S, S, 1., ok[0]),
    'a row has no valid score': lambda: consolidate(S, S, 1., S > 0),
    'there is no score': lambda: consolidate(S[:, :0], S[:, :0], 1.)}

@pytest.mark.parametrize('message', BAD)
def test_bad_input(message):
    with pytest.raises(DataError, match=message) as e: BAD[message]()
    assert e.value.where and e.value.fix
