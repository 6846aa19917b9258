"Features on disk: what goes in comes out, and whatever is wrong is told in one sentence."
import dataclasses, json, multiprocessing, os, pickle, shutil, signal, subprocess, sys, tracemalloc

import h5py
import numpy as np
import pytest

from helpers import refused
from mcls_nb.core import DataError
from mcls_nb.features import (
    HOW2_ACTION, TVR_VIDEO, FeatureContract, FeatureFolder, FeatureStore, check_rows, doctor,
    import_h5, import_npy_dir)

CONTRACT = FeatureContract(8, 1.5, 'seconds', 'noise')


def rows(n, width=8, seed=0):
    rng = np.random.default_rng([seed, n, width])
    return rng.normal(size=(n, width)).astype(np.float32)

@pytest.fixture
def items(): return {'a': rows(5), 'dança-1': rows(1), '-x_视频': rows(12), 'b.c': rows(3)}

@pytest.fixture
def store(tmp_path, items): return FeatureStore.create(tmp_path/'store', items, CONTRACT)

def edit_index(path, **changes):
    index = json.loads((path/'store.json').read_text('utf-8'))
    index.update(changes)
    kept = {k: v for k, v in index.items() if v is not None}
    (path/'store.json').write_text(json.dumps(kept), 'utf-8')


# --- contract

ODD = FeatureContract(4, 2, 'frames', 'é', ('a:1', 'b:c:3'), 'l2', 'float16')

@pytest.mark.parametrize('c', [CONTRACT, HOW2_ACTION, TVR_VIDEO, ODD])
def test_contract_survives_json(c):
    assert FeatureContract.from_json(c.to_json()) == c
    assert hash(FeatureContract.from_json(c.to_json())) == hash(c)

@pytest.mark.parametrize('change, words', [
    (dict(width=0), 'width 0'),
    (dict(width=2.), 'width 2.0'),
    (dict(width=True), 'width True'),
    (dict(span=-1), 'span -1'),
    (dict(span=float('nan')), 'span nan'),
    (dict(span='16'), "span '16'"),
    (dict(unit='minutes'), 'frames, seconds'),
    (dict(dtype='float64'), 'float32, float16'),
    (dict(normalisation='L2'), 'l2 each part'),
    (dict(order=('a:7',)), 'do not add up'),
    (dict(order=('a',)), 'name:width'),
    (dict(normalisation='l2 each part'), 'needs the parts')])
def test_contract_refuses(change, words):
    refused(lambda: dataclasses.replace(CONTRACT, **change), words)

@pytest.mark.parametrize('text, words', [
    ('', 'not JSON'), ('{"width": 8', 'not JSON'), ('[1]', 'without named fields'),
    ('{}', "'width' is missing"),
    ('{"width": 8, "span": 1, "unit": "frames", "fps": 3}', "'fps'"),
    ('{"width": 8, "span": 1, "unit": "frames", "order": "a:8"}', 'not a list')])
def test_contract_of_bad_json(text, words):
    refused(lambda: FeatureContract.from_json(text), words)

def test_order_may_be_a_list():
    assert FeatureContract(3, 1, 'frames', order=['a:1', 'b:2']).order == ('a:1', 'b:2')


# --- the gate

@pytest.mark.parametrize('array, words', [
    (rows(0), 'has no rows'),
    (rows(3)[0], 'shape (8,)'),
    (rows(3)[None], 'shape (1, 3, 8)'),
    (np.float32(3), 'shape ()'),
    ([], 'shape (0,)'),
    (rows(3, 7), 'width 7 instead of 8'),
    (rows(3).astype(object), 'object'),
    (rows(3).astype(complex), 'complex'),
    (rows(3) > 0, 'bool'),
    (rows(3).astype(str), 'instead of real numbers'),
    ([[1., 2.], [3.]], 'not a matrix'),
    (None, 'object'),
    (np.full((2, 8), 1e39), 'row 0 holds NaN or infinity (2 rows do)')])
def test_gate_refuses(array, words):
    assert refused(lambda: check_rows(array, 8, 'clip7'), words).startswith('clip7: ')

@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_gate_names_the_row(bad):
    x = rows(6)
    x[4, 7] = bad
    refused(lambda: check_rows(x, 8, 'clip7'), 'clip7: row 4 holds NaN or infinity;')

@pytest.mark.parametrize('dtype', ['f2', 'f4', '>f4', 'f8', 'i4', 'u1', 'i8'])
def test_gate_converts(dtype):
    x = np.abs(rows(4) * 9).astype(dtype)
    y = check_rows(x, 8, 'x')
    assert y.dtype == np.float32 and y.dtype.isnative
    np.testing.assert_array_equal(y, x.astype('f4'))


# --- stores

def test_round_trip_is_bit_equal(store, items):
    again = FeatureStore(store.where)
    assert again.ids == list(items) == list(again) and len(again) == 4
    assert again.contract == CONTRACT and again.width == 8
    for name, x in again.items():
        assert x.dtype == np.float32 and x.tobytes() == items[name].tobytes()
        assert again.length(name) == len(x)
        assert not x.flags.owndata and not x.flags.writeable and type(x) is np.ndarray
    again.verify()
    assert doctor(again.where) == []
    files = sorted(p.name for p in store.where.iterdir())
    assert files == ['offsets.npy', 'rows.bin', 'store.json']

def test_extreme_floats_survive(tmp_path):
    f = np.finfo(np.float32)
    x = np.array([[f.max, f.min, f.tiny, f.smallest_subnormal, -0., 0, 1, f.eps]], np.float32)
    s = FeatureStore.create(tmp_path/'s', {'x': x}, CONTRACT)
    assert s['x'].tobytes() == x.tobytes()

def test_half_precision(tmp_path, items):
    s = FeatureStore.create(tmp_path/'s', items, dataclasses.replace(CONTRACT, dtype='float16'))
    for name, x in s.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, items[name].astype('f2').astype('f4'))
    assert doctor(s.where) == []
    large = {'x': rows(2) * 1e6}
    refused(lambda: FeatureStore.create(tmp_path/'t', large, s.contract),
            'x: is too large for float16')

def test_layouts_of_memory(tmp_path, items):
    odd = {'columns': np.asfortranarray(rows(5)), 'slice': rows(10)[::2], 'back': rows(5)[::-1],
           'wide': rows(5, 16)[:, ::2], 'list': rows(2).tolist()}
    s = FeatureStore.create(tmp_path/'s', odd, CONTRACT)
    for name in odd: np.testing.assert_array_equal(s[name], np.asarray(odd[name], np.float32))

def test_hash_names_the_content(tmp_path, items, store):
    same = FeatureStore.create(tmp_path/'same', iter(items.items()), CONTRACT)
    turned = dict(reversed(items.items()))
    renamed = {f'{k}!': v for k, v in items.items()}
    joined = {'a': np.concatenate(list(items.values()))}
    hashes = [FeatureStore.create(tmp_path/f'o{i}', other, CONTRACT).hash
              for i, other in enumerate((turned, renamed, joined))]
    assert same.hash == store.hash and len({store.hash, *hashes}) == 4

def test_unknown_id_names_the_nearest(store, tmp_path):
    refused(lambda: store['dança-2'], "no item 'dança-2' among 4", "did you mean 'dança-1'?")
    refused(lambda: store.length('zzzzzzzz'), 'see `ids`')
    refused(lambda: store[5], 'no item 5')
    assert 'a' in store and 'q' not in store

@pytest.mark.parametrize('make, words', [
    (lambda: {'x': rows(3), 'y': rows(3, 9)}, 'y: has rows of width 9'),
    (lambda: {'x': rows(0)}, 'x: has no rows'),
    (lambda: {'x': rows(2) * np.nan}, 'x: row 0 holds NaN'),
    (lambda: [('x', rows(1)), ('x', rows(2))], 'x: occurs twice'),
    (lambda: {3: rows(1)}, '3: is not an id'),
    (lambda: {'': rows(1)}, 'is not an id'),
    (lambda: {}, 'no items'),
    (lambda: ((n, open(n)) for n in ['no/such/file']), 'the items of a store: cannot be read')])
def test_bad_items_leave_nothing(tmp_path, make, words):
    refused(lambda: FeatureStore.create(tmp_path/'s', make(), CONTRACT), words)
    assert list(tmp_path.iterdir()) == []

def test_bad_items_leave_the_old_store(store, items):
    refused(lambda: FeatureStore.create(store.where, {'x': rows(3, 9)}, CONTRACT), 'width 9')
    assert FeatureStore(store.where).hash == store.hash
    assert len(list(store.where.parent.iterdir())) == 1

def test_a_store_can_be_rewritten_from_itself(store, items):
    new = FeatureStore.create(store.where, ((k, x * 2) for k, x in store.items()), CONTRACT)
    np.testing.assert_array_equal(new['a'], items['a'] * 2)
    np.testing.assert_array_equal(store['a'], items['a']) # the old one, where it is still open

def test_create_never_replaces_other_things(tmp_path, items):
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'x.npy').write_text('mine')
    for path in (tmp_path/'photos', tmp_path/'photos'/'x.npy'):
        refused(lambda: FeatureStore.create(path, items, CONTRACT),
                'not a feature store', 'choose a new folder')
    assert (tmp_path/'photos'/'x.npy').read_text() == 'mine'

def test_a_store_is_replaced_if_it_is_ours_alone(store, items):
    again = lambda: FeatureStore.create(store.where, items, CONTRACT)
    (store.where/'photos').mkdir()
    (store.where/'photos'/'rows.bin').write_text('mine') # named like ours, elsewhere
    said = refused(again, "holds ['photos/rows.bin'], which was not", 'choose a new folder')
    assert 'is not a feature store' not in said and FeatureStore(store.where).hash == store.hash
    shutil.rmtree(store.where/'photos')
    (store.where/'.DS_Store').touch()
    assert again().hash == store.hash # which counts as nothing

def test_a_store_without_a_mark_is_read_and_kept(store, items):
    edit_index(store.where, made_by=None) # as older versions wrote it
    assert FeatureStore(store.where).hash == store.hash and doctor(store.where) == []
    for mark in (None, 'somebody', 'mcls_nb index'):
        edit_index(store.where, made_by=mark)
        refused(lambda: FeatureStore.create(store.where, items, CONTRACT),
                'is not a feature store with the mark of mcls_nb', 'delete this one yourself')
    (store.where/'store.json').write_text('["somebody\'s"]')
    refused(lambda: FeatureStore.create(store.where, items, CONTRACT), 'is not a feature store')
    assert (store.where/'rows.bin').stat().st_size

def test_what_comes_while_a_store_is_written_is_kept(store, items):
    def slowly():
        yield from items.items()
        (store.where/'notes.txt').write_text('mine')
    refused(lambda: FeatureStore.create(store.where, slowly(), CONTRACT), "holds ['notes.txt']")
    assert (store.where/'notes.txt').read_text() == 'mine'
    assert list(store.where.parent.iterdir()) == [store.where]

def test_killed_writer_leaves_no_store(tmp_path):
    code = f'''if True:
        import sys, numpy as np
        from mcls_nb.features import FeatureStore, FeatureContract
        def items():
            for i in range(10**9):
                if i == 50: print('half-way', flush=True)
                yield str(i), np.ones((64, 8))
        FeatureStore.create({str(tmp_path/"s")!r}, items(), FeatureContract(8, 1, 'frames'))'''
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'half-way\n'
    p.send_signal(signal.SIGKILL)
    p.wait()
    p.stdout.close()
    assert not (tmp_path/'s').exists()
    refused(lambda: FeatureStore(tmp_path/'s'), 'no such folder')
    assert len(FeatureStore.create(tmp_path/'s', {'x': rows(2)}, CONTRACT)) == 1

def _first(store): return store['a'].copy()

def test_other_processes_get_the_path_not_the_rows(tmp_path):
    s = FeatureStore.create(tmp_path/'s', {'a': rows(20_000)}, CONTRACT)
    assert len(pickle.dumps(s)) < 500
    with multiprocessing.get_context('spawn').Pool(1) as pool: there = pool.apply(_first, (s,))
    np.testing.assert_array_equal(there, s['a'])


# --- broken stores

def cut(path, n): os.truncate(path, path.stat().st_size + n)

def offsets(*o): return lambda p: np.save(p/'offsets.npy', o)

def index(**changes): return lambda p: edit_index(p, **changes)

def write(name, data): return lambda p: (p/name).write_bytes(data)

FAULTS = { # what is done to a store -> what the sentence must name
    'rows cut': (lambda p: cut(p/'rows.bin', -4), 'rows.bin: has 668 bytes instead of 672'),
    'rows grown': (lambda p: cut(p/'rows.bin', 4), 'rows.bin: has 676 bytes'),
    'rows empty': (lambda p: os.truncate(p/'rows.bin', 0), 'rows.bin: is missing or empty'),
    'rows gone': (lambda p: (p/'rows.bin').unlink(), 'rows.bin: is missing or empty'),
    'offsets gone': (lambda p: (p/'offsets.npy').unlink(), 'offsets.npy: there is no such file'),
    'offsets cut': (lambda p: cut(p/'offsets.npy', -4), 'offsets.npy: is truncated'),
    'offsets short': (offsets(0, 5, 6, 21), 'has 4 offsets for 4 items'),
    'offsets too far': (offsets(0, 5, 6, 18, 99), 'bytes instead of'),
    'offsets fall': (offsets(0, 6, 5, 18, 21), 'item 1 has no rows'),
    'offsets still': (offsets(0, 5, 5, 18, 21), 'item 1 has no rows'),
    'offsets begin late': (offsets(1, 5, 6, 18, 21), 'offsets from zero'),
    'offsets of floats': (offsets(0., 5, 6, 18, 21), 'offsets from zero'),
    'index gone': (lambda p: (p/'store.json').unlink(),
                   'store.json: is missing, so this is no feature store'),
    'index not JSON': (write('store.json', b'width: 8'), 'store.json: is not JSON'),
    'index not UTF-8': (write('store.json', b'{"\xff"'), 'store.json: byte 2 is not UTF-8'),
    'contract gone': (index(contract=None), 'store.json: the contract is missing'),
    'contract wrong': (index(contract=dict(width=-8, span=1, unit='frames')),
                       'store.json: width -8'),
    'contract of another width': (index(contract=dict(width=9, span=1, unit='frames')),
                                  'has 672 bytes instead of 756'),
    'ids gone': (index(ids=None), 'the ids are missing'),
    'ids twice': (index(ids=['a', 'b', 'a', 'c']), "1 ids occur twice, e.g. 'a'"),
    'newer format': (index(format=2), 'has format 2 instead of 1')}

@pytest.mark.parametrize('fault', FAULTS)
def test_broken_store_is_refused_and_diagnosed(store, fault):
    break_it, words = FAULTS[fault]
    break_it(store.where)
    refused(lambda: FeatureStore(store.where), words)
    assert any(words in said for said in doctor(store.where)), doctor(store.where)

def test_changed_rows_are_found_by_reading(store):
    data = bytearray((store.where/'rows.bin').read_bytes())
    data[100] ^= 1
    (store.where/'rows.bin').write_bytes(data)
    refused(FeatureStore(store.where).verify, 'the content differs')
    assert len(doctor(store.where)) == 1

def test_swapped_ids_are_found(store):
    edit_index(store.where, ids=['dança-1', 'a', '-x_视频', 'b.c'])
    refused(FeatureStore(store.where).verify, 'the content differs')

def test_doctor_names_every_fault_of_a_store(tmp_path):
    contract = FeatureContract(8, 1, 'frames', order=('a:6', 'b:2'), normalisation='l2 each part')
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    good = np.concatenate([unit(rows(4, 6)), unit(rows(4, 2))], 1)
    good[2, 6:] = 0 # a black frame
    longer = good * [[1.5] * 6 + [1] * 2]
    items = {'good': good, 'nan': good, 'long': longer, 'last': good}
    s = FeatureStore.create(tmp_path/'s', items, contract)
    assert len(doctor(s.where)) == 1 and 'row of length 1.5' in doctor(s.where)[0]
    x = np.fromfile(s.where/'rows.bin', '<f4').reshape(-1, 8)
    x[5, 0] = np.nan
    x[:-1].tofile(s.where/'rows.bin')
    edit_index(s.where, ids=['good', 'nan', 'good', 'last'])
    said = doctor(s.where)
    for words in ("twice, e.g. 'good'", 'rows.bin: has 480 bytes instead of 512',
                  '[1]: row 1 holds NaN', '[2]: has a row of length 1.5'):
        assert sum(words in line for line in said) == 1, said
    assert len(said) == 4


# --- folders and files

def test_folder_is_read_lazily(tmp_path, items):
    for name, x in items.items(): np.save(tmp_path/f'{name}.npy', x)
    np.save(tmp_path/'half.npy', items['a'].astype('f2'))
    (tmp_path/'._a.npy').write_text('left by a file manager')
    (tmp_path/'notes.txt').write_text('no features')
    f = FeatureFolder(tmp_path, CONTRACT)
    assert f.ids == sorted([*items, 'half']) and f.contract == CONTRACT and doctor(tmp_path) == []
    assert f['half'].dtype == np.float32
    for name, x in items.items(): np.testing.assert_array_equal(f[name], x)
    os.truncate(tmp_path/'a.npy', (tmp_path/'a.npy').stat().st_size - 1)
    refused(lambda: f['a'], 'a.npy: is truncated')
    assert len(f) == 5 and f['b.c'].shape == (3, 8)
    assert FeatureFolder(tmp_path).width == 8 and FeatureFolder(tmp_path).contract is None
    refused(lambda: FeatureFolder(tmp_path, HOW2_ACTION)['b.c'],
            'b.c.npy: has rows of width 8 instead of 2048')
    refused(lambda: f['b,c'], "did you mean 'b.c'?")

@pytest.mark.parametrize('make, words', [
    (lambda p: p.write_text('1 2 3'), 'is not a .npy file'),
    (lambda p: p.write_bytes(b''), 'is not a .npy file'),
    (lambda p: p.write_bytes(pickle.dumps(rows(3))), 'is not a .npy file'),
    (lambda p: np.savez(p.open('wb'), x=rows(3)), 'is not a .npy file'),
    (lambda p: np.save(p, rows(3).astype(object), allow_pickle=True),
     'holds pickled Python objects'),
    (lambda p: (np.save(p, rows(3)), cut(p, -1)), 'is truncated'),
    (lambda p: (np.save(p, rows(3)), cut(p, -190)), 'is truncated'),
    (lambda p: np.save(p, rows(3)[0]), 'shape (8,)'),
    (lambda p: np.save(p, np.float32(1)), 'shape ()'),
    (lambda p: np.save(p, rows(0)), 'no rows'),
    (lambda p: np.save(p, rows(3) * np.inf), 'NaN or infinity'),
    (lambda p: np.save(p, rows(3).astype('c8')), 'complex64')])
def test_broken_npy(tmp_path, make, words):
    make(tmp_path/'x.npy')
    np.save(tmp_path/'y.npy', rows(2))
    refused(lambda: FeatureFolder(tmp_path, CONTRACT)['x'], 'x.npy: ', words)
    refused(lambda: import_npy_dir(tmp_path, tmp_path/'s', CONTRACT), 'x.npy: ', words)
    assert not (tmp_path/'s').exists()
    for place in (tmp_path, tmp_path/'x.npy'):
        said = doctor(place)
        assert len(said) == 1 and words in said[0] and 'x.npy: ' in said[0], said

def test_damaged_headers_never_escape(tmp_path):
    np.save(tmp_path/'x.npy', rows(3))
    whole, rng = (tmp_path/'x.npy').read_bytes(), np.random.default_rng(0)
    folder = FeatureFolder(tmp_path)
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, 128, 3): data[at] = rng.integers(256)
        (tmp_path/'x.npy').write_bytes(data)
        try: folder['x']
        except DataError: pass

def test_missing_and_empty_folders(tmp_path):
    refused(lambda: FeatureFolder(tmp_path), 'holds no .npy files')
    refused(lambda: FeatureFolder(tmp_path/'no'), 'no such folder')
    refused(lambda: FeatureStore(tmp_path), 'no feature store', 'FeatureFolder')
    for path, words in ((tmp_path, 'neither a feature store'), (tmp_path/'no', 'no such file'),
                        (tmp_path/'no.h5', 'no such file')):
        assert len(doctor(path)) == 1 and words in doctor(path)[0]

def test_doctor_of_a_folder_goes_on(tmp_path):
    for i in range(4): np.save(tmp_path/f'ok{i}.npy', rows(3))
    np.save(tmp_path/'wide.npy', rows(3, 9))
    np.save(tmp_path/'nan.npy', rows(3) * np.nan)
    (tmp_path/'text.npy').write_text('x')
    said = doctor(tmp_path)
    assert len(said) == 3
    for words in ('nan.npy: row 0', 'text.npy: is not',
                  'wide.npy: has rows of width 9 instead of 8'):
        assert any(words in line for line in said), said

def test_import_into_the_source_is_refused(tmp_path):
    np.save(tmp_path/'x.npy', rows(3))
    refused(lambda: import_npy_dir(tmp_path, tmp_path, CONTRACT), 'not a feature store')
    assert (tmp_path/'x.npy').exists()


# --- HDF5

def h5(path, **data):
    with h5py.File(path, 'w') as f:
        for name, x in data.items(): f[name] = x
    return path

def test_import_h5(tmp_path, items):
    path = h5(tmp_path/'x.h5', **items)
    s = import_h5(path, tmp_path/'s', CONTRACT)
    assert s.ids == sorted(items) and doctor(path) == []
    for name, x in items.items(): np.testing.assert_array_equal(s[name], x)
    batched = h5(tmp_path/'b.h5', **{k: x[None] for k, x in items.items()})
    t = import_h5(batched, tmp_path/'t', CONTRACT, dataset_of=lambda f, i: f[i][0])
    assert t.hash == s.hash

@pytest.mark.parametrize('data, words', [
    (dict(x=rows(0)), 'x.h5[x]: has no rows'),
    (dict(x=rows(3, 9)), 'width 9'),
    (dict(x=rows(3)[0]), 'shape (8,)'),
    (dict(x='text'), 'instead of real numbers'),
    (dict(x=rows(2) * np.inf), 'infinity'),
    ({'x/y': rows(3)}, 'a group with y inside'),
    (dict(x=h5py.SoftLink('/nowhere')), 'cannot be read')])
def test_broken_h5_items(tmp_path, data, words):
    path = h5(tmp_path/'x.h5', a=rows(2), b=rows(2), **data)
    refused(lambda: import_h5(path, tmp_path/'s', CONTRACT), 'x.h5[x]: ', words)
    assert not (tmp_path/'s').exists()
    assert len(doctor(path)) == 1 and words in doctor(path)[0]

def test_broken_h5_files(tmp_path):
    (tmp_path/'text.h5').write_text('x')
    cut(h5(tmp_path/'cut.h5', x=rows(500)), -1000)
    h5(tmp_path/'empty.h5')
    for name, words in (('text', 'truncated or not an HDF5'), ('cut', 'truncated or not an HDF5'),
                        ('no', 'no such file')):
        refused(lambda: import_h5(tmp_path/f'{name}.h5', tmp_path/'s', CONTRACT), words)
        said = doctor(tmp_path/f'{name}.h5')
        assert len(said) == 1 and words in said[0]
    refused(lambda: import_h5(tmp_path/'empty.h5', tmp_path/'s', CONTRACT), 'no items')
    assert 'holds nothing' in doctor(tmp_path/'empty.h5')[0]

def test_wrong_dataset_of(tmp_path):
    path = h5(tmp_path/'x.h5', **{'x/y': rows(3)})
    refused(lambda: import_h5(path, tmp_path/'s', CONTRACT, lambda f, i: f[i]['z']),
            'x.h5[x]: cannot be read', 'dataset_of')


# --- memory

def test_writing_holds_one_item_at_a_time(tmp_path):
    x = rows(2000, 64) # 0.5 MB; 40 of them would be 20 MB
    tracemalloc.start()
    items, contract = ((str(i), x + i) for i in range(40)), dataclasses.replace(CONTRACT, width=64)
    FeatureStore.create(tmp_path/'s', items, contract)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6

@pytest.mark.skipif(sys.platform != 'linux', reason='Reads /proc.')
def test_reading_one_item_does_not_read_the_others(tmp_path):
    items = {str(i): rows(2, 1024) for i in range(4)}
    contract = dataclasses.replace(CONTRACT, width=1024)
    s = FeatureStore.create(tmp_path/'s', items, contract)
    n = 2_000_000 # rows of 4 KiB: 8 GB, of which the disk holds nothing
    np.save(s.where/'offsets.npy', np.array([0, 2, n - 3, n - 1, n]))
    os.truncate(s.where/'rows.bin', n * 4096)
    code = f'''if True:
        from mcls_nb.features import FeatureStore
        resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096
        s, before = FeatureStore({str(s.where)!r}), resident()
        x = s['2'] * 2
        print(x.shape, s.length('1'), resident() - before)'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    *shape, length, grown = done.stdout.split()
    assert shape == ['(2,', '1024)'] and int(length) == n - 5 and int(grown) < 5e6


# --- real data

def test_real_how2_features_are_healthy(shared_data, tmp_path):
    folder = shared_data/'how2_mcls_demo'/'video_action_features'
    if not folder.is_dir(): pytest.skip(f'{folder} is absent.')
    assert doctor(folder) == []
    source = FeatureFolder(folder, HOW2_ACTION)
    s = import_npy_dir(folder, tmp_path/'s', HOW2_ACTION)
    assert len(s) == 18 and min(map(s.length, s)) == 125 and max(map(s.length, s)) == 441
    for name, x in s.items(): np.testing.assert_array_equal(x, source[name])
    assert doctor(s.where) == []
