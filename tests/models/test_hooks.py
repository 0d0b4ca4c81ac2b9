"""Every family, every hook point: what is read, what replacing does, gradients, caches, padding."""

from __future__ import annotations

import contextlib
import inspect
from functools import cache

import pytest
import torch
import transformers

from tests.models.families import DEPTH, FAMILIES, attended, model_of
from trustbench import attention
from trustbench.errors import InputError
from trustbench.models import (
    ActivationCapture,
    all_hook_points,
    hooked,
    load_model,
    resolve_hook_points,
)

IDS = (torch.arange(30).view(2, 15) * 7) % 63 + 1
EXPERTS = ("Mixtral", "DeepseekV3", "Qwen3Next")
COMPRESSED = ("DeepseekV3",)  # its cache keeps latents
NORMED_OUTPUTS = ("Gemma2", "Gemma3", "Olmo2")  # what a block puts out is normalised, then added
families = pytest.mark.parametrize("family", FAMILIES)


@cache
def points_of(family):
    """{(layer, site): hook point}."""
    return {(point.layer, point.site): point for point in all_hook_points(model_of(family))}


def logits(model, ids=IDS, **options):
    return model(ids, use_cache=False, **options).logits


@contextlib.contextmanager
def forward_as(module, function):
    """The module's forward is function(forward, args, kwargs), without any hook."""
    forward = module.forward
    module.forward = lambda *args, **kwargs: function(forward, args, kwargs)
    try:
        yield
    finally:
        del module.forward


def zeros_in(forward, args, kwargs):
    if args:
        return forward(torch.zeros_like(args[0]), *args[1:], **kwargs)
    return forward(**kwargs | {"hidden_states": torch.zeros_like(kwargs["hidden_states"])})


def zeros_out(forward, args, kwargs):
    out = forward(*args, **kwargs)
    zeros = torch.zeros_like(out if isinstance(out, torch.Tensor) else out[0])
    return zeros if isinstance(out, torch.Tensor) else (zeros, *out[1:])


@families
def test_what_is_read_is_what_the_model_computes(family):
    model, points = model_of(family), points_of(family)
    acts = ActivationCapture(model, list(points.values())).run(IDS)
    got = {key: acts[point.name] for key, point in points.items()}
    assert all(a.shape[:2] == IDS.shape for a in got.values())
    stream = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    for i in range(DEPTH):
        torch.testing.assert_close(got[i, "resid_pre"], stream[i])
        if i + 1 < DEPTH:  # the last hidden state comes after the final norm
            torch.testing.assert_close(got[i, "resid_post"], stream[i + 1])
        projected = points[i, "head_out"].module(got[i, "head_out"])
        torch.testing.assert_close(projected, got[i, "attn_out"])
        if (i, "q") in points and family != "Qwen3Next":  # which gates what comes of its heads
            heads = attended(family, *(got[i, kind] for kind in "qkv"))
            torch.testing.assert_close(heads, got[i, "head_out"], atol=2e-5, rtol=1e-4)
        if (i, "mlp_hidden") in points:
            assert got[i, "mlp_hidden"].shape[-1] in (48, 128)
            down = points[i, "mlp_hidden"].module(got[i, "mlp_hidden"])
            torch.testing.assert_close(down, got[i, "mlp_out"])
        if family not in ("OPT", "Bloom", "Mpt"):
            torch.testing.assert_close(
                points[i, "mlp_in"].module(got[i, "mlp_in"]), got[i, "mlp_out"]
            )
        if family not in NORMED_OUTPUTS:
            parts = [got[i, site] for site in ("resid_pre", "attn_out", "mlp_out")]
            torch.testing.assert_close(sum(parts), got[i, "resid_post"], atol=1e-4, rtol=1e-4)


@families
def test_every_layer_has_every_site_that_its_kind_has(family):
    points = points_of(family)
    for i in range(DEPTH):
        lacks = set()
        if family in EXPERTS and not (family == "DeepseekV3" and i == 0):
            lacks |= {"mlp_hidden"}
        if family == "Qwen3Next" and i == 0:  # linear attention
            lacks |= {"q", "k", "v"}
        sites = ["resid_pre", "attn_in", "q", "k", "v", "head_out", "attn_out"]
        sites += ["mlp_in", "mlp_hidden", "mlp_out", "resid_post"]
        assert [s for layer, s in points if layer == i] == [s for s in sites if s not in lacks]


@families
def test_the_identity_changes_no_bit(family):
    model, points = model_of(family), list(points_of(family).values())
    plain = logits(model)
    with hooked(model, read=points):
        assert torch.equal(logits(model), plain)
    with hooked(model, {point: torch.clone for point in points}, read=points) as acts:
        assert torch.equal(logits(model), plain)
    captured = ActivationCapture(model, points).run(IDS)
    assert all(torch.equal(acts[name], captured[name]) for name in captured)
    assert torch.equal(logits(model), plain)


@families
def test_zero_is_the_ablation(family):
    """Against a model whose weights or forward are made to give zeros, by other means."""
    model, points = model_of(family), points_of(family)

    def hooked_zero(*sites):
        with hooked(model, {points[i, site]: torch.zeros_like for site in sites}):
            return logits(model)

    for i in range(DEPTH):
        layer, attention = points[i, "resid_pre"].module, points[i, "attn_in"].module
        for site, module, ablation in (
            ("resid_pre", layer, zeros_in),
            ("resid_post", layer, zeros_out),
            ("attn_in", attention, zeros_in),
            ("head_out", points[i, "head_out"].module, zeros_in),
            ("attn_out", points[i, "attn_out"].module, zeros_out),
            ("mlp_in", points[i, "mlp_in"].module, zeros_in),
            ("mlp_out", points[i, "mlp_out"].module, zeros_out),
        ):
            with forward_as(module, ablation):
                wanted = logits(model)
            assert torch.equal(hooked_zero(site), wanted), site
            assert not torch.allclose(wanted, logits(model), atol=1e-3)
        if (i, "mlp_hidden") in points:
            with forward_as(points[i, "mlp_hidden"].module, zeros_in):
                assert torch.equal(hooked_zero("mlp_hidden"), logits(model))
        if (i, "q") in points:
            torch.testing.assert_close(hooked_zero("v"), hooked_zero("head_out"))
            # Without queries or keys, all scores are 0.
            torch.testing.assert_close(hooked_zero("q"), hooked_zero("k"))
            assert not torch.allclose(hooked_zero("q"), logits(model), atol=1e-3)


@families
def test_gradients_are_finite_differences(family):
    model, points = model_of(family, torch.float64), all_hook_points(model_of(family, torch.float64))
    points = [point for point in points if point.layer == 1]
    weight = torch.randn(64, dtype=torch.float64)

    def loss():
        return (logits(model)[:, -1] @ weight).sum()

    start = points[0]
    with hooked(model, {start: lambda x: x.detach().requires_grad_()}, read=points) as acts:
        at_once = torch.autograd.grad(loss(), [acts[point.name] for point in points])
    for point, wanted in zip(points, at_once, strict=True):
        direction = torch.randn_like(wanted)
        step = 1e-3 * direction  # large, since some norms compute in fp32 whatever they are given
        losses = []
        for sign in (1, -1):
            with hooked(model, {point: lambda x, sign=sign, step=step: x + sign * step}):
                losses.append(loss())
        slope = (losses[0] - losses[1]) / 2e-3
        torch.testing.assert_close((wanted * direction).sum().double(), slope, rtol=2e-3, atol=1e-2)
        with hooked(model, {point: lambda x: x.detach().requires_grad_()}, read=[point]) as acts:
            (alone,) = torch.autograd.grad(loss(), acts[point.name])
        torch.testing.assert_close(alone, wanted, rtol=1e-5, atol=1e-6)  # the fp32 in it again


@families
def test_a_cache_changes_nothing(family):
    """Steered at every site at once: token by token as all at once, and in generate."""
    model, points = model_of(family), points_of(family)
    chosen = {
        point: lambda x: 0.9 * x + 0.1
        for point in points.values()
        if not (family in COMPRESSED and point.site in ("k", "v"))
    }
    with hooked(model, chosen, read=chosen) as acts:
        wanted = logits(model)
        whole = dict(acts)
        out = model(IDS[:, :11], use_cache=True)
        given = (
            "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        )
        torch.testing.assert_close(out.logits, wanted[:, :11], atol=1e-4, rtol=1e-4)
        for t in range(11, IDS.shape[1]):
            out = model(IDS[:, t : t + 1], use_cache=True, **{given: out.past_key_values})
            torch.testing.assert_close(out.logits[:, 0], wanted[:, t], atol=1e-4, rtol=1e-4)
            for name, value in acts.items():
                assert value.shape[1] == 1
                torch.testing.assert_close(value[:, 0], whole[name][:, t], atol=1e-4, rtol=1e-4)
        options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
        options |= {"pad_token_id": 0, "output_logits": True, "return_dict_in_generate": True}
        with_cache = model.generate(IDS, **options)
        without = model.generate(IDS, **options, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(with_cache.logits, without.logits, atol=1e-4, rtol=1e-4)


def test_keys_that_are_not_what_the_cache_keeps_are_refused():
    model = model_of("DeepseekV3")
    for kind in "kv":
        with (
            pytest.raises(NotImplementedError, match=r"model\.layers\.1\.self_attn: its cache keeps"),
            hooked(model, {f"layers.1.self_attn.{kind}": torch.zeros_like}),
        ):
            model(IDS, use_cache=True)
    assert torch.equal(model(IDS).logits, logits(model))


@families
def test_padding_on_either_side_gives_the_same_at_real_tokens(family):
    model, points = model_of(family), list(points_of(family).values())
    real = IDS[:1, :10]
    pads = torch.zeros(1, 4, dtype=torch.int64)
    runs = []
    for left in (False, True):
        row = torch.cat([pads, real] if left else [real, pads], 1)
        mask = (row != 0).long()
        options = {"attention_mask": mask}
        if "position_ids" in inspect.signature(model.forward).parameters:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        with hooked(model, {points[1]: lambda x: 0.9 * x + 0.1}, read=points) as acts:
            logits(model, row, **options)
        runs.append({name: a[:, 4:] if left else a[:, :10] for name, a in acts.items()})
    with hooked(model, {points[1]: lambda x: 0.9 * x + 0.1}, read=points) as acts:
        logits(model, real)
    for name, alone in acts.items():
        torch.testing.assert_close(runs[0][name], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(runs[1][name], alone, atol=1e-4, rtol=1e-4)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with hooked(model, {points[1]: lambda x: 0.9 * x + 0.1}):
        wanted = model.generate(real, **options).logits
        found = model.generate(row, attention_mask=mask, **options).logits  # on the left
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# What hooked() promises beyond a single point.


@pytest.fixture
def model():
    return model_of("GPTNeoX")


def hooks_in(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
    ), transformers.AttentionInterface.get_interface


def test_several_points_in_one_forward_are_keyed_as_they_were_given(model):
    mlp = "gpt_neox.layers.0.mlp"
    read = [f"{mlp}.input", mlp, "blocks.0.attn.hook_z", resolve_hook_points(model, [1], "q")[0]]
    with hooked(model, {mlp: lambda x: x + 1}, read=read, stop=True) as acts:
        model(IDS)
        raise AssertionError("the forward ends the block")
    assert list(acts) == [*read[:2], "blocks.0.attn.hook_z", "gpt_neox.layers.1.attention.q"]
    # The replacement is what is read.
    torch.testing.assert_close(
        acts[mlp], model.gpt_neox.layers[0].mlp(acts[f"{mlp}.input"]) + 1, rtol=0, atol=0
    )


def test_stop_computes_nothing_later_and_leaves_nothing_behind(model):
    before, calls = hooks_in(model), []
    handles = [
        model.gpt_neox.layers[1].register_forward_hook(lambda *_: calls.append("layer 1")),
        model.get_output_embeddings().register_forward_hook(lambda *_: calls.append("head")),
    ]
    ActivationCapture(model, resolve_hook_points(model, [0], "mlp_out")).run(IDS)
    assert calls == []
    ActivationCapture(model, resolve_hook_points(model, [0, 1], "resid_post")).run(IDS)
    for handle in handles:
        handle.remove()
    assert calls == ["layer 1"]
    assert hooks_in(model) == before


@pytest.mark.parametrize("family", ["GPTNeoX", "Falcon", "GPTNeo"])
def test_an_exception_leaves_the_model_as_it_was(family):
    model = model_of(family)
    before, plain = hooks_in(model), logits(model)

    def fails(x):
        raise ZeroDivisionError

    for point in points_of(family).values():
        with pytest.raises(ZeroDivisionError), hooked(model, {point: fails}):
            model(IDS)
        assert hooks_in(model) == before
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", ["GPTNeoX", "Bloom"])
@pytest.mark.parametrize("site", ["resid_pre", "q", "k", "mlp_hidden", "attn_out"])
def test_blocks_nest_the_outer_function_first(family, site):
    model, point = model_of(family), points_of(family)[1, site]
    with (
        hooked(model, {point: lambda x: x + 1}, read=[point]) as outer,
        hooked(model, {point: lambda x: 2 * x}, read=[point]) as inner,
    ):
        nested = model(IDS).logits
    with hooked(model, {point: lambda x: 2 * (x + 1)}):
        assert torch.equal(model(IDS).logits, nested)
    torch.testing.assert_close(inner[point.name], 2 * outer[point.name])
    with hooked(model, read=[point]) as outer:  # the inner block's end is not the outer's
        with hooked(model, read=[point], stop=True) as inner:
            model(IDS)
        assert torch.equal(inner[point.name], outer[point.name])
        model(IDS)


@pytest.mark.parametrize("family", ["Llama", "GPTNeo", "Falcon"])
def test_attention_is_captured_as_it_is_under_hooks(family):
    model = model_of(family)
    queries = {p: torch.zeros_like for (_, site), p in points_of(family).items() if site == "q"}
    with hooked(model, queries):
        layers = attention.capture(model, IDS)
    assert len(layers) == DEPTH
    for layer in layers.values():  # without queries every visible key has the same weight
        visible = torch.arange(1.0, 16).expand_as(layer.entropy)
        torch.testing.assert_close(layer.entropy.exp(), visible, rtol=1e-4, atol=1e-4)


def test_the_model_may_add_to_a_tensor_that_was_read():
    """Falcon adds the attention's output to the MLP's, in place."""
    points = points_of("Falcon")
    chosen = [points[0, site] for site in ("mlp_hidden", "mlp_out", "attn_out")]
    with hooked(model_of("Falcon"), read=chosen) as acts:
        model_of("Falcon")(IDS)
    hidden, out, _ = acts.values()
    torch.testing.assert_close(chosen[0].module(hidden), out)


def test_activations_changed_in_place_are_refused(model):
    with (
        pytest.raises(InputError, match=r"layers\.0: its activations were changed in place"),
        hooked(model, {"layers.1.input": lambda x: x.mul_(2)}, read=["layers.0"]),
    ):
        model(IDS)


def test_what_no_forward_came_to_is_refused(model):
    rotary = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)
    with (
        pytest.raises(InputError, match=r"\['gpt_neox.layers.1'\]: their modules were not run"),
        hooked(model, {"layers.1": torch.zeros_like}, read=["layers.0"]),
    ):
        model.gpt_neox.layers[0](torch.zeros(1, 1, 32), None, position_embeddings=rotary)


def test_layers_that_share_a_module_are_refused():
    config = transformers.GPTNeoXConfig(**FAMILIES["GPTNeoX"])
    shared = transformers.GPTNeoXForCausalLM(config).eval()
    shared.gpt_neox.layers[1].mlp = shared.gpt_neox.layers[0].mlp
    with (
        pytest.raises(InputError, match=r"mlp: a forward came to it twice"),
        hooked(shared, read=["layers.0.mlp"]),
    ):
        shared(IDS)


@pytest.mark.parametrize(
    ("function", "given"),
    [(lambda x: x[:, :1], r"'\[2, 1, 32\] on cpu'"), (lambda x: None, "None"), (lambda x: x[0], "")],
)
def test_a_function_that_changes_the_shape_is_refused(model, function, given):
    expected = rf"={given}.*: expected activations \[2, 15, 32\] on cpu"
    for name in ("gpt_neox.layers.1", "gpt_neox.layers.0.attention.q"):
        with pytest.raises(InputError, match=expected), hooked(model, {name: function}):
            model(IDS)


def test_names_are_checked(model):
    before_rotary = ["blocks.0.attn.hook_q"]
    with (
        pytest.raises(InputError, match=r"near: .*attn\.hook_rot_q"),
        hooked(model, read=before_rotary),
    ):
        model(IDS)
    twice = {"layers.0": torch.clone, "gpt_neox.layers.0": torch.clone}
    with pytest.raises(InputError, match=r"is there by two names"), hooked(model, twice):
        model(IDS)


def test_the_dtype_stays_the_models():
    model = model_of("Llama", torch.bfloat16)
    for site in ("resid_post", "q", "mlp_hidden"):
        (point,) = resolve_hook_points(model, [0], site)
        with hooked(model, {point: lambda x: x.float()}, read=[point]) as acts:
            wide = model(IDS).logits
        assert torch.equal(wide, model(IDS).logits) and acts[point.name].dtype == torch.bfloat16


@families
def test_three_spellings_name_one_point(family):
    model = model_of(family)
    point = resolve_hook_points(model, [1])[0]
    for spelling in (point.name, *point.aliases, "1"):
        assert resolve_hook_points(model, [spelling]) == [point]
        assert resolve_hook_points(model, spelling) == [point]
    assert "blocks.1.hook_resid_post" in point.aliases
    spellings = [name for p in all_hook_points(model) for name in (p.name, *p.aliases)]
    assert len(set(spellings)) == len(spellings)


def test_lens_names_are_those_of_the_same_activations():
    names = {s: p.aliases[0] for (i, s), p in points_of("Llama").items() if i == 1}
    assert names["q"] == "blocks.1.attn.hook_rot_q" and names["v"] == "blocks.1.attn.hook_v"
    names = {s: p.aliases[0] for (i, s), p in points_of("GPT2").items() if i == 1}
    assert names["k"] == "blocks.1.attn.hook_k" and names["head_out"] == "blocks.1.attn.hook_z"
    assert names["mlp_hidden"] == "blocks.1.mlp.hook_post" and names["attn_in"] == "h.1.attn.input"


def test_unknown_layers_are_refused_with_the_nearest_name(model):
    with pytest.raises(InputError, match=r"layers=2: expected layer numbers in \[0, 1\]"):
        resolve_hook_points(model, [2])
    with pytest.raises(InputError, match=r"near: .*hook_resid_post"):
        resolve_hook_points(model, ["blocks.1.hook_resid_pos"])
    with pytest.raises(InputError, match="site='resid'"):
        resolve_hook_points(model, "all", "resid")
    with pytest.raises(InputError, match="at least one layer"):
        resolve_hook_points(model, [])
    with pytest.raises(InputError, match="site='mlp_hidden': expected one that Mixtral"):
        resolve_hook_points(model_of("Mixtral"), "all", "mlp_hidden")
    with pytest.raises(InputError, match="layers=0: expected layers with q: 1"):
        resolve_hook_points(model_of("Qwen3Next"), "all", "q")


def test_load_model(tiny_model_dir, tmp_path):
    loaded, tokenizer = load_model(str(tiny_model_dir))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert next(loaded.parameters()).dtype == torch.float32 and tokenizer.eos_token == "<end>"
    with pytest.raises(InputError, match="expected a folder or hub name"):
        load_model(str(tmp_path))
