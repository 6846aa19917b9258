"""Parity of distillation with arrays made by the released MCLS code (tests/fixtures/mcls), float32
to 1e-5 and float64 to 1e-9.

Cases: A the English side is longer, B it is shorter, C equal lengths without padding. The released
code counts padding as steps."""
import pytest
import torch
from torch.nn import functional as F

from mcls_nb.distill import align_pool, kd_loss, kd_sum, soft_dtw, soft_dtw_cost, squared_distances
from mcls_nb.summarize.models import Reader, SummarizerConfig, convert_reference
from test_reference import equal, load, part, precise

LAYERS = { # encoder layers that are compared
    'e_apd_encoder_kd': 2, 'e_apdv_vocab_kd': 0, 'f_lawd_encoder': 2, 'f_lawdv_vocab': 0}
pooled, warped = (pytest.mark.parametrize('name', [n for n in LAYERS if n[0] == kind])
                  for kind in 'ef')
cases = pytest.mark.parametrize('case', 'ABC')


def ours(arrays):
    "Released parameters of an encoder under the names that they have in a `Reader`."
    return {k.removeprefix('reader.'): v for k, v in convert_reference(arrays).items()}

def reader(z, side, layers, words):
    "The released `source_encoder` (Portuguese student) or `target_encoder` (English teacher)."
    cfg = SummarizerConfig(source_words=words, reads='text', d=16, heads=2, ffn=32, max_text=32,
                           encoder_layers=layers, dropout=0., attention_dropout=0., ffn_dropout=0.)
    params = ours({f'encoder.{k}': v for k, v in part(z, f'param.{side}_encoder.').items()})
    module = Reader(cfg).to(next(iter(params.values())).dtype)
    missing, unexpected = module.load_state_dict(params, strict=False)
    assert not unexpected # only LAWD after layers has a final norm:
    assert set(missing) <= {'encoder.norm.weight', 'encoder.norm.bias'}
    return module

def states(z, name, case, dtype):
    "Student reader, and states and masks of both sides."
    q, found = part(z, f'{case}.'), []
    for side, lang, words in (('source', 'pt', 37), ('target', 'en', 40)):
        module, ids = reader(z, side, LAYERS[name], words), q[f'in.src_{lang}_tokens']
        x = module.states(ids, ids != 0)
        found += [module, module.encoder.norm(x) if name == 'f_lawd_encoder' else x, ids != 0]
    student, x, x_mask, _, y, y_mask = found
    equal(x.transpose(0, 1), q['out.student'])
    assert (x_mask.sum(1) == q['in.pt_lengths']).all()
    assert (y_mask.sum(1) == q['in.en_lengths']).all()
    return student, x, y, x_mask, y_mask, q

def check_gradients(student, q):
    grads = ours({k.removeprefix('source_'): v for k, v in part(q, 'grad.').items()})
    scale = max(g.abs().max().item() for g in grads.values())
    for name, g in grads.items(): equal(student.get_parameter(name).grad, g, name, scale)


# (e) pooling -------------------------------------------------------------------------------------

@precise
@pooled
@cases
def test_pooled_as_released(name, case, dtype):
    student, x, y, x_mask, y_mask, q = states(load(name, dtype), name, case, dtype)
    equal(y.transpose(0, 1), q['out.teacher_unpooled'])
    equal(align_pool(y, x.shape[1]).transpose(0, 1), q['out.teacher_pooled'])
    loss = kd_loss(x, y, x_mask, y_mask, pool_padded=True)
    equal(loss, q['out.loss'])
    loss.backward()
    check_gradients(student, q)

@precise
@pooled
@cases
def test_pooled_on_valid_steps(name, case, dtype):
    student, x, y, x_mask, y_mask, q = states(load(name, dtype), name, case, dtype)
    total, count = kd_sum(x, y, x_mask, y_mask)
    equal(total / count, q['masked.loss'])
    assert count == 16 * q['in.pt_lengths'].sum()
    if case == 'C': equal(q['masked.loss'], q['out.loss']) # nothing is padded
    params = [p for n, p in student.named_parameters() if 'norm.' not in n or 'layers' in n]
    naive = 0.
    for i, (a, b) in enumerate(zip(x_mask, y_mask)):
        alone = F.adaptive_avg_pool1d(y[i, b].T, int(a.sum())).T
        naive = naive + F.smooth_l1_loss(x[i, a], alone, reduction='sum')
    grads = [torch.autograd.grad(v, params, retain_graph=True) for v in (total, naive)]
    for g, h in zip(*grads): equal(g, h.detach(), scale=100.)


# (f) warping -------------------------------------------------------------------------------------

@precise
@warped
@cases
def test_warped_as_released(name, case, dtype):
    student, x, y, x_mask, y_mask, q = states(load(name, dtype), name, case, dtype)
    equal(soft_dtw(x, y), q['out.cost'])
    loss = kd_loss(x, y, x_mask, y_mask, 'warp', pool_padded=True)
    equal(loss, q['out.loss'])
    loss.backward()
    check_gradients(student, q)
    masked = soft_dtw(x, y, 1., x_mask, y_mask)
    alone = [soft_dtw(x[i:i+1, a], y[i:i+1, b]) for i, (a, b) in enumerate(zip(x_mask, y_mask))]
    equal(masked, torch.cat(alone).detach())
    assert ((masked - q['out.cost']).abs() > .1).any() == (case != 'C')

@precise
@pytest.mark.parametrize('gamma, prefix', [(1., ''), (.1, 'gamma0.1.')])
def test_soft_dtw_alone(gamma, prefix, dtype):
    z = load('f_softdtw', dtype)
    D, x = z['in.D'].requires_grad_(), z['in.X'].requires_grad_()
    cost = soft_dtw_cost(D, gamma)
    equal(cost, z[f'{prefix}out.cost'])
    equal(torch.autograd.grad(cost.sum(), D)[0], z[f'{prefix}out.grad_D'])
    equal(squared_distances(x, z['in.Y']), z['in.D'].detach())
    cost = soft_dtw(x, z['in.Y'], gamma)
    equal(cost, z[f'{prefix}out.cost'])
    equal(torch.autograd.grad(cost.mean(), x)[0], z[f'{prefix}out.grad_X_of_mean_cost'])
    R = z[f'{prefix}out.R']
    for n, m in ((1, 1), (6, 1), (2, 4), (4, 5)): # corners of smaller tables
        equal(soft_dtw_cost(D, gamma, [n] * 3, [m] * 3), R[:, n, m], f'{n} x {m}')
