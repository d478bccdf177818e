"""What must hold for every input: properties, tried on inputs that hypothesis makes up, the same ones at each run."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cmlfa.batches import IdentityBatches, RandomBatches
from cmlfa.bpe import END, MASK, PAD, START
from cmlfa.lfa import LFA
from cmlfa.losses import cmpm_loss, id_loss, itc_loss, mlm_loss, sdm_loss
from cmlfa.masking import mask_tokens
from cmlfa.measures import per_query
from cmlfa.support import UserError
from cmlfa.tokenizer import Tokenizer, chunks, split_words

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.load_profile("fixed")
TOKENIZER = Tokenizer()
anything = st.text() | st.text(st.characters(codec="utf-8", categories=("Ll", "Lu", "Nd", "Po", "Zs", "Cc")), max_size=60) | st.lists(st.sampled_from(["a man", "&amp;", "<|endoftext|>", "<b>", "'s", "\x00", "\u202e", "é", "١٢", "🙂", "\ud83d", "\n"])).map("".join)


@settings(max_examples=400)
@given(anything)
@example("&amp;amp;lt;b>")
def test_decoding_gives_the_cleaned_text_back(text):
    words = [w for chunk in chunks(text) for w in split_words(chunk)]
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == " ".join(words)


@settings(max_examples=400)
@given(anything, st.integers(3, 90))
def test_every_text_becomes_one_row_or_one_sentence(text, length):
    try: row = Tokenizer(length)(text, truncate=True)[0].tolist()
    except UserError as e:
        assert not TOKENIZER.encode(text) and "\n" not in str(e)
        return
    end = row.index(END)
    assert row[0] == START and 2 <= end < length and set(row[end + 1:]) <= {PAD} and all(PAD <= i < MASK for i in row[1:end])


@given(st.lists(st.integers(1, 75), min_size=1, max_size=6), st.floats(0.001, 1), st.integers(0, 2**32))
def test_masking_chooses_at_least_one_word_and_no_special_token(lengths, rate, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), 77, dtype=torch.long)
    for row, n in zip(ids, lengths):
        row[0], row[n + 1] = START, END
        row[1:n + 1] = torch.randint(1, MASK, (n,), generator=g)
    before, (masked, chosen) = ids.clone(), mask_tokens(ids, g, rate)
    assert torch.equal(ids, before) and chosen.any(1).all()
    special = (ids == START) | (ids == END) | (ids == PAD)
    assert not (chosen & special).any() and torch.equal(masked[~chosen], ids[~chosen])
    assert ((masked == START) | (masked == END) | (masked == PAD)).equal(special)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 6), st.integers(0, 5), st.integers(0, 2**32))
def test_latent_features_depend_on_their_own_tokens_alone(samples, words, prototypes, padding, seed):
    torch.manual_seed(seed)
    lfa, tokens = LFA(16, prototypes, layers=2, heads=2).double().eval(), torch.randn(samples, words, 16, dtype=torch.float64)
    with torch.no_grad():
        for p in lfa.parameters(): p.normal_(0, .3)
        whole = lfa(tokens)
        for one, z in zip(tokens, whole): assert torch.allclose(lfa(one[None])[0], z, atol=1e-9) # whatever else is in the batch
        padded = torch.cat([tokens, 1e3 * torch.randn(samples, padding, 16, dtype=torch.float64)], 1)
        assert torch.allclose(lfa(padded, (torch.arange(words + padding) < words).expand(samples, -1)), whole, atol=1e-9)
        order = torch.randperm(prototypes)
        lfa.prototypes.copy_(lfa.prototypes[order])
        assert torch.allclose(lfa(tokens), whole[:, order], atol=1e-9)


def by_hand(name, image, text, labels, temperature):
    "A loss in float64 NumPy, pair by pair."
    image, text, labels = image.double().numpy(), text.double().numpy(), labels.numpy()
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    total = 0.
    for a, b in ((image, text), (text, image)):
        scores = a @ unit(b).T if name == "cmpm" else unit(a) @ unit(b).T / temperature
        for i, row in enumerate(scores):
            same = (labels == labels[i]).astype(float)
            target, log = same / (np.linalg.norm(same) if name == "cmpm" else same.sum()), row - row.max() - np.log(np.exp(row - row.max()).sum())
            total += (-(target * log).sum() / 2 if name == "itc" else (np.exp(log) * (log - np.log(target + 1e-8))).sum()) / len(scores)
    return total


COMPARING = dict(itc=itc_loss, sdm=sdm_loss, cmpm=lambda image, text, labels, temperature: cmpm_loss(image, text, labels))


@pytest.mark.parametrize("name", COMPARING)
@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.floats(0.01, 1), st.integers(0, 2**32))
def test_losses_are_what_they_are_by_hand_and_the_same_both_ways(name, labels, temperature, seed):
    torch.manual_seed(seed)
    labels, loss, (image, text) = torch.tensor(labels), COMPARING[name], torch.randn(2, len(labels), 8)
    value = loss(image, text, labels, temperature)
    assert value.item() == pytest.approx(by_hand(name, image, text, labels, temperature), rel=1e-4, abs=1e-5)
    assert loss(text, image, labels, temperature).item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6)
    order = torch.randperm(len(labels))
    assert loss(image[order], text[order], labels[order], temperature).item() == pytest.approx(value.item(), rel=1e-5, abs=1e-5)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2**32))
def test_classifying_losses_are_what_they_are_by_hand(labels, seed):
    torch.manual_seed(seed)
    labels, (a, b) = torch.tensor(labels), 5 * torch.randn(2, len(labels), 6)
    entropy = lambda x: -np.mean([row[k] - np.log(np.exp(row).sum()) for row, k in zip(x.double().numpy(), labels)])
    assert id_loss(a, b, labels).item() == pytest.approx((entropy(a) + entropy(b)) / 2, rel=1e-5)
    assert id_loss(b, a, labels).item() == pytest.approx(id_loss(a, b, labels).item(), rel=1e-6)
    assert mlm_loss(a, labels).item() == pytest.approx(entropy(a), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@settings(max_examples=40)
@given(st.lists(st.sampled_from([0., 1e-30, 6e-8, -1., 1., 6e4, -6e4]), min_size=24, max_size=24), st.booleans())
def test_losses_stay_finite_at_the_edges_of_half_precision(dtype, values, same):
    image, text = torch.tensor(values, dtype=dtype).view(2, 3, 4)
    labels = torch.zeros(3, dtype=torch.long) if same else torch.arange(3)
    for name, loss in COMPARING.items(): assert loss(image, text, labels, 0.02).isfinite(), name
    assert id_loss(image, text, labels).isfinite() and mlm_loss(image, labels).isfinite()
    if (image.float().norm(dim=1).min() > 1e-3) and (text.float().norm(dim=1).min() > 1e-3): # a direction to be turned in
        x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
        (itc_loss(x, y, labels) + sdm_loss(x, y, labels)).backward() # CMPM's gradient is as long as the other feature, by its definition
        assert x.grad.isfinite().all() and y.grad.isfinite().all()


def of_an_order(right):
    "The measures of one query whose results stand in this order, True where right."
    places = [i + 1 for i, r in enumerate(right) if r]
    return dict(R1=float(places[0] <= 1), R5=float(places[0] <= 5), R10=float(places[0] <= 10), AP=float(np.mean([(j + 1) / p for j, p in enumerate(places)])), INP=len(places) / places[-1], rank=float(places[0]))


def slowly(scores, query, gallery, ties):
    "Every order that the scores allow, one after the other; published: the gallery's own order among equals."
    groups = [[i for i, s in enumerate(scores) if s == value] for value in sorted(set(scores), reverse=True)]
    orders = [tuple(itertools.chain(*groups))] if ties == "published" else [tuple(itertools.chain(*o)) for o in itertools.product(*map(itertools.permutations, groups))]
    each = [of_an_order([gallery[i] == query for i in order]) for order in orders]
    return {k: float(np.mean([e[k] for e in each])) for k in each[0]}


@settings(max_examples=80)
@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.sampled_from(["fair", "published"]), st.integers(1, 30))
def test_ranking_is_what_trying_every_order_gives(data, queries, items, ties, block):
    score, person = st.sampled_from([-.5, 0., .25, .5]), st.integers(0, 2)
    rows = [data.draw(st.lists(score, min_size=items, max_size=items)) for _ in range(queries)]
    who, whose = data.draw(st.lists(person, min_size=queries, max_size=queries)), data.draw(st.lists(person, min_size=items, max_size=items))
    found = per_query(torch.tensor(rows), torch.tensor(who), torch.tensor(whose), ties, block)
    for q in range(queries):
        assert found["matches"][q] == whose.count(who[q])
        if found["matches"][q]:
            for k, v in slowly(rows[q], who[q], whose, ties).items(): assert found[k][q].item() == pytest.approx(v, abs=1e-9), k
        else: assert found["AP"][q].isnan()


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3), st.integers(0, 99), st.integers(0, 9), st.integers(0, 5))
def test_random_batches_cover_are_disjoint_and_come_again(n, size, ranks, seed, epoch, start):
    if size * ranks > n:
        with pytest.raises(UserError): RandomBatches(n, size, seed, 0, ranks)
        return
    def drawn(rank, seed=seed, start=0):
        b = RandomBatches(n, size, seed, rank, ranks)
        b.epoch, b.start = epoch, start
        return list(b)
    all_ = [drawn(r) for r in range(ranks)]
    flat = [i for batches in all_ for batch in batches for i in batch]
    assert len(set(flat)) == len(flat) and set(flat) <= set(range(n)) and n - len(flat) < size * ranks
    assert all(len(batch) == size for batches in all_ for batch in batches)
    assert all_ == [drawn(r) for r in range(ranks)] and drawn(0, start=start) == all_[0][start:]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(0, 99), st.integers(0, 3))
@example([i // 8 for i in range(192)], 5, 4, 1, 0, 2)
@example([i // 2 for i in range(120)], 4, 4, 2, 0, 3)
@example([0] * 40 + [1, 2, 3, 4, 5, 6], 5, 2, 1, 0, 1)
def test_identity_batches_hold_so_many_of_each_and_come_again(labels, people, instances, ranks, seed, start):
    labels = torch.tensor(labels)
    everybody = len(labels.unique())
    if people * ranks > everybody:
        with pytest.raises(UserError): IdentityBatches(labels, people * instances, instances, seed, 0, ranks)
        return
    def drawn(rank, start=0):
        b = IdentityBatches(labels, people * instances, instances, seed, rank, ranks)
        b.start = start
        return list(b), len(b)
    all_, visits = [drawn(r)[0] for r in range(ranks)], dict.fromkeys(labels.tolist(), 0)
    assert {drawn(r)[1] for r in range(ranks)} == {len(batches) for batches in all_} == {len(all_[0])}
    for step in zip(*all_):
        together = [i for batch in step for i in batch]
        who, count = labels[together].unique(return_counts=True)
        assert len(who) == people * ranks and (count == instances).all() # no person twice, on no process
        for w in who.tolist():
            visits[w] += 1
            mine = [i for i in together if labels[i] == w]
            if (labels == w).sum() >= instances: assert len(set(mine)) == instances
        assert max(visits.values()) - min(visits.values()) <= 1 # nobody again before all have come
    assert min(visits.values()) >= 1 # everybody in an epoch
    assert len(all_[0]) - 1 < max(len(labels) // instances, everybody) / (people * ranks) <= len(all_[0]) # of as many pairs as there are, or of everybody
    assert [sum(step, []) for step in zip(*all_)] == list(IdentityBatches(labels, people * ranks * instances, instances, seed)) # together, one process's batches
    assert [(batches, len(all_[0])) for batches in all_] == [drawn(r) for r in range(ranks)] and drawn(0, start)[0] == all_[0][start:]
