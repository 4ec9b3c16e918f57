"""How CE-Bench scores depend on width and L0 alone: random and trained TopK SAEs over a grid of both."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

from husai_lib.activations.banks import Bank
from husai_lib.evidence.cache import cached
from husai_lib.evidence.rows.base import RunTables
from husai_lib.evidence.rows.measured import ContrastiveRow
from husai_lib.measures.contrastive import contrastive_scores
from husai_lib.measures.matching import random_decoders
from husai_lib.params.benchmarks import ContrastiveParams
from husai_lib.params.conditions import Condition, SaeParams
from husai_lib.saes.trained import Member, TrainedSae
from husai_lib.saes.training import members, train_bank
from husai_lib.tasks import Progress


def width_study(
    params: ContrastiveParams,
    sae_params: SaeParams,
    seed: int,
    banks: Mapping[str, Bank],
    progress: Progress | None = None,
) -> list[ContrastiveRow]:
    """Scores of random and of trained TopK SAEs on the bank `stories`, a row for each width and k of `params`.

    Trained ones have the candidates' recipe and the bank `training`; random ones are what this training starts from.
    """
    study, training = params.study, banks["training"]
    bias, shared = training.mean().float(), sae_params.model_dump(exclude={"d_sae", "k"})

    def bank_of(widths: Sequence[int]) -> list[Member]:
        shapes = sorted(itertools.product(widths, study.ks), reverse=True)  # those that take longest come first
        return members([Condition(name="topk", architecture="topk", d_sae=d, k=k, **shared) for d, k in shapes], [seed])

    random = [_random_sae(member, bias) for member in bank_of([*study.widths, *study.random_widths])]
    trained = train_bank(bank_of(study.widths), training, progress=progress)
    rows = []
    for origin, saes in (("random", random), ("trained", trained)):
        for sae, score in zip(saes, contrastive_scores(saes, banks["stories"], params, progress), strict=True):
            about = {"origin": origin, "seed": seed} | sae.member.condition.model_dump(include={"d_sae", "k"})
            rows.append(ContrastiveRow.derive("baselines", RunTables({}, {}), **about, **asdict(score)))
    return sorted(rows, key=lambda row: (row.origin, row.d_sae, row.k))


def _random_sae(member: Member, bias: Tensor) -> TrainedSae:
    of = member.condition
    inputs = {"random_topk": [of.d_sae, of.k], "seed": member.seed, "bias": bias.tolist()}
    sae = random_topk(of.d_sae, of.k, member.seed, bias)
    return TrainedSae(member, cached("saes", __name__, inputs, sae.save_model))


def random_topk(d_sae: int, k: int, seed: int, bias: Tensor) -> TopKSAE:
    """A SAELens TopK SAE with random unit decoder rows, their transpose as encoder, and `bias [d_in]`."""
    sae = TopKSAE(TopKSAEConfig(d_in=len(bias), d_sae=d_sae, k=k, apply_b_dec_to_input=True))
    [rows] = random_decoders((d_sae, len(bias)), [seed])
    sae.load_state_dict({"W_dec": rows, "W_enc": rows.T.contiguous(), "b_dec": bias, "b_enc": rows.new_zeros(d_sae)})
    return sae.eval()
