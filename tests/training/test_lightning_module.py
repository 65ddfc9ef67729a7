import itertools
import math
import os
from unittest import mock

import lightning as L
import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from nsaug.attacks import FGSM, FGSMRS, PGD, EmbeddingPGD
from nsaug.data.dataset import PAD_LABEL
from nsaug.methods import SMART, TRADES, AdversarialTraining, Clean, EmbeddingAdversarial, FreeLB, NoiseAugmentation
from nsaug.models.noisy_vit import _run
from nsaug.nullspace import NullspaceNoise, RandomNoise, UniversalNoise
from nsaug.training.fsdp import FSDP, full_tensors
from nsaug.training.lightning_module import AdamWConfig, Finetuner, warmup_cosine
from nsaug.utils.errors import UserError
from nsaug.utils.rng import Stream
from nsaug.utils.rng import make_generator as draws
from tests.conftest import ROOT, tiny_vit
from tests.training.ranks import start_ranks, wait

METHODS = {
    "clean": lambda: Clean(),
    "per_image": lambda: NoiseAugmentation(NullspaceNoise(init_scale=1.0, eps=0.005, num_steps=2)),
    "per_batch": lambda: NoiseAugmentation(NullspaceNoise(init_scale=1.0, num_steps=2, scope="per_batch")),
    "universal": lambda: NoiseAugmentation(
        UniversalNoise(init_scale=1.0, eps=1e-9, num_passes=2, data_fraction=0.5, lr=0.03)
    ),
    "random": lambda: NoiseAugmentation(RandomNoise(NullspaceNoise(init_scale=1.0, eps=0.005, num_steps=2))),
    "influence": lambda: NoiseAugmentation(RandomNoise(NullspaceNoise(init_scale=1.0, eps=0.01), match="influence")),
    "init": lambda: NoiseAugmentation(RandomNoise(NullspaceNoise(init_scale=1.0), match="init")),
    "pgd": lambda: AdversarialTraining(PGD(num_steps=2)),
    "fgsm_rs": lambda: AdversarialTraining(FGSMRS(), name="fgsm_rs"),
    "trades": lambda: TRADES(PGD(num_steps=2, random_start=False)),
    "embedding_pgd": lambda: EmbeddingAdversarial(EmbeddingPGD(num_steps=2)),
    "freelb": lambda: FreeLB(EmbeddingPGD(num_steps=3)),
    "smart": lambda: SMART(num_steps=2),
}


def make_data(count=8):
    rng = torch.Generator().manual_seed(4)
    images = torch.rand(count, 3, 8, 8, generator=rng, dtype=torch.float64)
    labels = torch.randint(10, (count,), generator=rng)
    return [(images[i], labels[i], str(i)) for i in range(count)]


def trainer(**kwargs):
    options = {"max_steps": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "inference_mode": False}
    return L.Trainer(**options | quiet | kwargs)


def test_warmup_cosine():
    rates = [warmup_cosine(step, total=100, warmup=10) for step in range(101)]
    assert rates[:2] == [1 / 11, 2 / 11]
    assert rates[10] == 1 == max(rates)
    assert math.isclose(rates[55], 0.5)
    assert rates[100] == 0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert warmup_cosine(0, total=1, warmup=0) == 1


class HostReads(TorchDispatchMode):
    """Collect the operations for which the host waits for a GPU: item(), bool(), nonzero(), indexing by a mask."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = (
            [index for index in args[1] if index is not None and index.dtype == torch.bool] if name == "index" else []
        )
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique") or masks:
            self.operations.append(name)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_never_waits_for_the_device(name, monkeypatch):
    module = Finetuner(tiny_vit().double(), METHODS[name](), AdamWConfig(), seed=0)
    step, reads = module.training_step, HostReads()

    def watched_step(batch, batch_idx):
        with reads:
            return step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", watched_step)
    trainer(max_steps=2).fit(module, DataLoader(make_data(), batch_size=4))
    assert not reads.operations


def test_host_reads_are_noticed():
    with HostReads() as reads:
        assert torch.ones(1)
        assert len(torch.ones(2)[torch.tensor([True, False])]) == 1
    assert reads.operations == ["_local_scalar_dense", "index"]


def test_validation_loss_is_that_of_the_counted_images():
    """The second batch has none."""
    data = make_data()
    data[4:] = [(image, PAD_LABEL, name) for image, _, name in data[4:]]
    module = Finetuner(tiny_vit().double(), Clean(), AdamWConfig(), seed=0)
    (result,) = trainer().validate(module, DataLoader(data, batch_size=4), verbose=False)
    images, labels = (torch.stack([sample[index] for sample in data[:4]]) for index in (0, 1))
    assert result["val/loss"] == pytest.approx(F.cross_entropy(module.vit(images), labels).item())
    data[1][0][0, 0, 0] = torch.nan
    (result,) = trainer().validate(module, DataLoader(data, batch_size=4), verbose=False)
    assert math.isnan(result["val/loss"])


class Batches:
    """A loader that is no DataLoader."""

    def __init__(self, data):
        self.batches = list(DataLoader(data, batch_size=4))

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        yield from self.batches


def test_loaders_need_no_batch_size():
    module = Finetuner(tiny_vit().double(), METHODS["universal"](), AdamWConfig(), seed=0)
    trainer(max_epochs=1).fit(module, Batches(make_data()), Batches(make_data()))
    assert module.method.noise.noise.any()


def reverse_channels(samples):
    images, labels, names = default_collate(samples)
    return images.flip(1), labels, names


def test_universal_noise_is_learned_on_collated_images(monkeypatch):
    module = Finetuner(tiny_vit().double(), METHODS["universal"](), AdamWConfig(), seed=0)
    seen = []
    monkeypatch.setattr(module.method, "start_epoch", lambda vit, batches, *_: seen.extend(batches(0, 2)))
    trainer(max_steps=1).fit(module, DataLoader(make_data(), batch_size=4, collate_fn=reverse_channels))
    expected = torch.stack([image.flip(0) for image, *_ in make_data()])
    assert sorted(torch.cat(seen).flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def test_no_weight_decay_on_biases_norms_and_positions():
    module = Finetuner(tiny_vit().double(), Clean(), AdamWConfig(weight_decay=0.3, lr=1e-3), seed=0)
    fit = trainer(max_steps=1)
    fit.fit(module, DataLoader(make_data(), batch_size=4))
    decay = {id(p): group["weight_decay"] for group in fit.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in module.vit.model.named_parameters():
        no_decay = parameter.dim() == 1 or name in ("pos_embed", "cls_token")
        assert decay[id(parameter)] == (0 if no_decay else 0.3), name
    assert len(decay) == len(list(module.vit.parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_training_changes_weights_and_logs_metrics(method):
    module = Finetuner(tiny_vit().double(), METHODS[method]().double(), AdamWConfig(lr=1e-3), seed=0)
    before = {key: value.clone() for key, value in module.vit.state_dict().items()}
    fit = trainer(gradient_clip_val=1.0)
    fit.fit(module, DataLoader(make_data(), batch_size=4))
    assert all(not torch.equal(value, before[key]) for key, value in module.vit.state_dict().items())
    if isinstance(module.method, NoiseAugmentation):
        names = {"influence_before", "influence", "noise_rms", "converged", "clean_loss", "noisy_loss"}
        assert {f"train/{name}" for name in names} <= set(fit.callback_metrics)


def test_draws_depend_on_seed_step_and_rank():
    """Not on what was drawn before; another seed gives other draws."""

    def run(seed, disturb):
        torch.manual_seed(disturb)
        module = Finetuner(tiny_vit().double(), METHODS["per_image"]().double(), AdamWConfig(), seed=seed)
        torch.manual_seed(disturb)
        trainer().fit(module, DataLoader(make_data(), batch_size=4))
        return module.vit.state_dict()["head.weight"]

    torch.testing.assert_close(run(0, 1), run(0, 2), rtol=0, atol=0)
    assert not torch.equal(run(0, 1), run(1, 1))


def test_accumulated_batches_have_their_own_draws():
    drawn = []

    class Recording(Clean):
        def loss(self, vit, images, labels, generator):
            drawn.append(torch.rand(4, generator=generator))
            return super().loss(vit, images, labels, generator)

    module = Finetuner(tiny_vit().double(), Recording(), AdamWConfig(), seed=5)
    trainer(max_steps=2, accumulate_grad_batches=2).fit(module, DataLoader(make_data(), batch_size=4))
    expected = [torch.rand(4, generator=draws("cpu", 5, Stream.TRAINING, batch, 0)) for batch in range(4)]
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


def test_universal_noise_is_learned_at_the_start_of_an_epoch():
    """All batches of an epoch share a noise; the next epoch has another."""
    used = []

    class Recording(NoiseAugmentation):
        def loss(self, *args):
            used.append(self.noise.noise.clone())
            return super().loss(*args)

    method = Recording(METHODS["universal"]().noise).double()
    module = Finetuner(tiny_vit().double(), method, AdamWConfig(lr=1e-3), seed=0)
    trainer(max_steps=-1, max_epochs=2).fit(module, DataLoader(make_data(16), batch_size=4))
    assert len(used) == 8
    assert all(torch.equal(used[0], other) for other in used[1:4])
    assert all(torch.equal(used[4], other) for other in used[5:])
    assert not torch.equal(used[0], used[4])


def test_unknown_layer_is_refused():
    with pytest.raises(UserError, match="takes no noise at blocks.9"):
        Finetuner(tiny_vit(), NoiseAugmentation(NullspaceNoise(layer="blocks.9")), AdamWConfig(), seed=0)


def test_validation_measures_clean_and_adversarial_accuracy():
    vit = tiny_vit().double()
    attack = FGSM(eps=0.2)
    module = Finetuner(vit, Clean(), AdamWConfig(), seed=0, attack=attack, val_attack_batches=1)
    loader = DataLoader(make_data(), batch_size=4)
    (metrics,) = trainer().validate(module, loader, verbose=False)
    images, labels = torch.stack([x for x, _, _ in make_data()]), torch.stack([y for _, y, _ in make_data()])
    vit.eval()
    first = (vit(attack(vit, images[:4], labels[:4])).argmax(1) == labels[:4]).double().mean()
    assert metrics["val/top1"] == pytest.approx((vit(images).argmax(1) == labels).double().mean().item())
    assert metrics["val/adv_top1"] == pytest.approx(first.item())


def start_from_the_image(vit, images, count, scale, layer, generator):
    """A start that depends on the image alone, so that an image has the same noise on every rank."""
    if count == 1:
        return (2 * torch.rand(1, *vit.noise_shape(layer), generator=generator, dtype=torch.float64) - 1) * scale
    seeds = (images.sum((1, 2, 3)) * 1e6).long().tolist()
    draws = [torch.rand(vit.noise_shape(layer), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return 2 * torch.stack(draws).double() - 1


class KeepGradients(Finetuner):
    def on_before_optimizer_step(self, optimizer):
        self.kept = [p.grad.clone() for p in self.vit.parameters()]


def gradients(name: str, world: int, accumulated: int = 1, strategy: str | FSDP = "ddp") -> dict:
    """Gradients of one optimizer step on 16 images, in batches of 8 that 2 ranks or 2 accumulated batches may share."""
    method = METHODS[name]().double()
    module = KeepGradients(tiny_vit().double(), method, AdamWConfig(), seed=0)
    options = {"strategy": strategy, "devices": world, "num_nodes": 1} if world > 1 else {}
    rank = int(os.environ.get("LOCAL_RANK", 0)) if world > 1 else 0
    sampler = DistributedSampler(make_data(16), num_replicas=world, rank=rank, shuffle=False)
    loader = DataLoader(make_data(16), batch_size=8 // world, sampler=sampler)
    trainer(max_steps=1, accumulate_grad_batches=accumulated, **options).fit(module, loader)
    results = {"gradients": full_tensors(module.kept, keep=True)}
    if name == "universal":
        results["noise"] = method.noise.noise
    return results


def skipping() -> tuple[list, int]:
    """Gradients of a step whose second batch is skipped, because one of its images in the second process is NaN."""
    data = make_data(16)
    data[9][0].fill_(torch.nan)
    module = KeepGradients(tiny_vit().double(), METHODS["clean"](), AdamWConfig(), seed=0, max_nonfinite_batches=1)
    sampler = DistributedSampler(data, num_replicas=2, rank=int(os.environ["LOCAL_RANK"]), shuffle=False)
    options = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": 2, "max_steps": 1}
    trainer(**options).fit(module, DataLoader(data, batch_size=4, sampler=sampler))
    return module.kept, module.skipped


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs of torch.compile, with a backend faster than the default."""
    monkeypatch.setattr("nsaug.models.noisy_vit._compiled_run", lambda: torch.compile(_run, backend="aot_eager"))
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("per_image", "trades") else [pytest.mark.slow]) for name in METHODS],
)
def test_compiled_step_equals_eager_with_four_graphs_at_most(name, graphs):
    weights, counts = [], []

    class Counted(Finetuner):
        def on_train_start(self):
            self.before = graphs()  # of check_compile

        def on_train_batch_end(self, *args):
            counts.append(graphs() - self.before)

    for compile in (False, True):
        vit = tiny_vit(compile=compile).double()
        loader = DataLoader(make_data(16), batch_size=4)
        module = Counted(vit, METHODS[name]().double(), AdamWConfig(lr=1e-3), seed=0, attack=FGSM())
        trainer(max_steps=-1, max_epochs=2).fit(module, loader, loader)
        weights.append(vit.state_dict())
    assert counts[:8] == [0] * 8
    assert 1 <= counts[8] <= 4
    assert counts[8:] == [counts[8]] * 8
    torch.testing.assert_close(weights[1], weights[0], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", ["per_image", "per_batch", "pgd", "trades"])
def test_compiled_step_needs_no_more_flops(name, graphs, images, labels):
    """In particular no gradients to the weights where only those to the noise or the images are needed."""

    def flops(compile):
        vit, method = tiny_vit(compile=compile).double().train(), METHODS[name]().double()
        for _ in range(2):  # the first compiles
            with profile(with_flops=True) as profiler, vit.compiled():
                loss, _ = method.loss(vit, images, labels, draws("cpu", 0))
                loss.backward()
        return sum(event.flops for event in profiler.events())

    assert 0 < flops(True) <= 1.01 * flops(False)


def test_drop_path_needs_two_more_graphs(graphs, images, labels):
    """The noise is synthesized in eval mode, toward the predictions of eval mode."""
    vit, method = tiny_vit(compile=True, drop_path_rate=0.1).double().train(), METHODS["per_image"]().double()
    for step in range(3):
        with vit.compiled():
            loss, _ = method.loss(vit, images, labels, draws("cpu", step))
        loss.backward()
    assert graphs() == 5


def test_failing_compiler_is_reported_before_the_first_step(monkeypatch):
    def broken(function):
        raise RuntimeError("no compiler\nmore")

    module = Finetuner(tiny_vit(compile=True), Clean(), AdamWConfig(), seed=0)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"does not work here \(no compiler\).*model.compile=false"):
        trainer().fit(module, DataLoader(make_data(), batch_size=4))


SPLIT = ["clean", "per_image", "universal"]
SHARDED = ["per_image", "universal"]  # test_fsdp.py has all methods


def rank_of_two(rank: int, path: str) -> None:
    """Save the gradients of one of two processes, for some methods without and for all with accumulation."""
    torch.set_num_threads(1)
    with mock.patch("nsaug.nullspace.per_image.start_noise", start_from_the_image):
        results = {name: gradients(name, 2) for name in SPLIT}
        results |= {f"{name}, FSDP": gradients(name, 2, strategy=FSDP()) for name in SHARDED}
    results |= {f"{name}, accumulated": gradients(name, 2, accumulated=2) for name in METHODS}
    results["skipped"] = skipping()
    torch.save(results, f"{path}/{rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The gradients of two processes over gloo."""
    folder = tmp_path_factory.mktemp("ranks")
    code = "from tests.training.test_lightning_module import rank_of_two; rank_of_two(int(os.environ['LOCAL_RANK'])"
    results = wait(start_ranks(2, "-c", f"import os; {code}, '{folder}')", cwd=ROOT))
    assert [code for code, _ in results] == [0, 0], results
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.parametrize("name", [*SPLIT, *(f"{name}, FSDP" for name in SHARDED)])
def test_two_processes_equal_one(name, ranks):
    """In float64, for methods whose draws are made to depend on the image alone."""
    with mock.patch("nsaug.nullspace.per_image.start_noise", start_from_the_image):
        one = gradients(name.partition(",")[0], 1)
    for two in ranks:
        assert two[name].keys() == one.keys()
        torch.testing.assert_close(two[name], one, atol=1e-12, rtol=1e-9)


def test_all_processes_skip_a_batch_that_is_not_finite_in_one(ranks):
    """What was accumulated before is averaged over them all the same."""
    (first, skipped), (second, _) = (rank["skipped"] for rank in ranks)
    assert skipped == 1
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    torch.testing.assert_close(first, [gradient / 2 for gradient in gradients("clean", 1)["gradients"]])


@pytest.mark.parametrize("name", METHODS)
def test_ranks_and_accumulated_batches_are_averaged(name, ranks):
    """Two ranks with two batches, against the mean of four gradients of `Method.loss`."""
    results = [rank[f"{name}, accumulated"] for rank in ranks]
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)  # universal noise, too
    data = make_data(16)
    images, labels = torch.stack([x for x, _, _ in data]), torch.stack([y for _, y, _ in data])
    method, vit = METHODS[name]().double(), tiny_vit().double().train()
    if name == "universal":
        method.setup(vit)
        method.noise.noise.copy_(results[0]["noise"])
    for rank in range(2):
        for step in range(2):
            subset = slice(rank + 8 * step, 8 * (step + 1), 2)  # as DistributedSampler splits them
            loss, _ = method.loss(vit, images[subset], labels[subset], draws("cpu", 0, Stream.TRAINING, step, rank))
            (loss / 4).backward()
    expected = [parameter.grad for parameter in vit.parameters()]
    torch.testing.assert_close(results[0]["gradients"], expected, atol=1e-12, rtol=1e-9)
