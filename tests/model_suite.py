"""Shared tests of all models: inherit `ModelSuite`, or `HeadSuite` for models that accept labels."""

import copy
import json
import math
import shutil
from typing import Any, ClassVar

import pytest
import torch
from formula import fill
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit_hf import MobileViTConfig, MobileViTSSDLiteConfig, MobileViTSSDLiteForObjectDetection
from mobilevit_hf.modeling.layers_mobilevit import MobileViTConvLayer
from mobilevit_hf.pipelines import fold_batch_norm

# A tiny MobileViT whose neighboring layers differ in width.
TINY = {
    "image_size": 64,
    "hidden_sizes": [12, 16, 20],
    "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32],
    "num_attention_heads": 4,
    "expand_ratio": 2.0,
    "aspp_out_channels": 16,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "num_labels": 5,
}
TINY_BACKBONE = {name: value for name, value in TINY.items() if name != "num_labels"}
LEVEL_CHANNELS = [24, 28, 28, 16, 16, 12]  # some neighbors are equal, as in the paper
TRANSFORMER_LAYERS = (2, 4, 3)  # of the blocks of strides 8, 16, 32
STAGE_STRIDES = (2, 2, 4, 8, 16, 32)  # of the stem and the five encoder layers

# "eager" captures the graph, "aot_eager" the backward graph as well; "inductor" requires a C++ compiler.
BACKENDS = ["eager", "aot_eager", *(["inductor"] if any(map(shutil.which, ("g++", "clang++"))) else [])]

SIZES = [(32, 32), (33, 47), (64, 160), (225, 257)]


def tiny_detector_config(**fields: Any) -> MobileViTSSDLiteConfig:
    """Return the configuration of a detector with a tiny backbone."""
    tiny = {"backbone_config": TINY_BACKBONE, "image_size": 64, "level_channels": LEVEL_CHANNELS, "num_labels": 5}
    return MobileViTSSDLiteConfig(**tiny | fields)


def tiny_detector(**fields: Any) -> MobileViTSSDLiteForObjectDetection:
    """Return a tiny detector in evaluation mode, with weights from `fill`."""
    return fill(MobileViTSSDLiteForObjectDetection(tiny_detector_config(**fields))).eval()


def make_pixels(batch: int = 2, height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    """Return random images (batch, channels, height, width) in 0..1 from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, channels, height, width, generator=generator)


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Compare lists of tensors; the tolerance is scaled by the largest absolute value if that exceeds 1."""
    assert len(actual) == len(expected) > 0
    for tensor, reference in zip(actual, expected, strict=True):
        assert reference.std() > 0.01, "the expected output is constant"
        torch.testing.assert_close(tensor, reference, atol=tolerance * max(1.0, float(reference.abs().max())), rtol=0)


def assert_xavier(weight: Tensor, name: str) -> None:
    """Check that a weight is sampled from the Xavier uniform distribution; `name` is the message on failure."""
    receptive_field = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * receptive_field))
    assert weight.abs().max() <= bound, name
    assert weight.abs().max() > 0.95 * bound, name
    # Seven standard errors of a uniform distribution's variance, which is bound² / 3.
    assert abs(weight.square().mean() / (bound**2 / 3) - 1) < 7 * math.sqrt(4 / 5 / weight.numel()), name


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected).norm() / expected.norm())


class ModelSuite:
    """Tests of every model.

    Attributes:
        model_class: The class under test.
        output_names: Outputs to compare; each a tensor or a tuple of tensors.
        first_stage: Stem (0) or encoder layer (1 to 5) of the first hidden state.
        smallest_exported_side: Minimum image side of an exported graph, in pixels. A single cell or patch in the
            coarsest feature map would be specialized, so the minimum gives more than one.
    """

    model_class: ClassVar[type]
    output_names: ClassVar[tuple[str, ...]]
    first_stage: ClassVar[int] = 1
    smallest_exported_side: ClassVar[int] = 65

    def make_config(self, **fields: Any) -> Any:
        """Return the configuration of a tiny model."""
        return MobileViTConfig(**{**TINY, **fields})

    def encoder_config(self, config: Any) -> MobileViTConfig:
        """Return the encoder's part of a configuration."""
        return config

    def output_shapes(self, config: Any, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
        """Return the shapes of all output tensors, in the order of `output_names`."""
        raise NotImplementedError

    def make_labels(self, batch: int, height: int, width: int) -> dict[str, Any]:
        """Return the arguments of `forward` for a loss, other than the pixels."""
        return {}

    def make_model(self, attn_implementation: str | None = None, **fields: Any) -> nn.Module:
        """Return a tiny model in evaluation mode, with weights from `fill`."""
        config = self.make_config(**fields)
        return fill(self.model_class._from_config(config, attn_implementation=attn_implementation)).eval()

    def tensors(self, outputs: Any) -> list[Tensor]:
        """Return the output tensors to compare."""
        values = [outputs[name] for name in self.output_names]
        return [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]

    def run(self, model: nn.Module, pixels: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self.tensors(model(pixel_values=pixels))

    def strides(self, config: Any) -> list[int]:
        return [min(stride, self.encoder_config(config).output_stride) for stride in STAGE_STRIDES]

    def train_step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Run a seeded forward and backward pass in training mode; return loss, gradients and buffers."""
        model.train().zero_grad()
        torch.manual_seed(0)
        outputs = model(pixel_values=make_pixels(), **self.make_labels(2, 64, 64))
        loss = outputs["loss"] if "loss" in outputs else sum(t.square().mean() for t in self.tensors(outputs))
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return loss.detach(), gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}

    # --- saving and loading ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_save_and_load(self, tmp_path, memory_format):
        model = self.make_model().to(memory_format=memory_format)
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").is_file()
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [self.model_class.__name__]
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert not loaded.training
        assert_close(self.run(loaded, make_pixels()), self.run(model, make_pixels()), 1e-6)

    # --- outputs -----------------------------------------------------------------------------------------------------

    def test_eager_attention_equals_sdpa(self, monkeypatch):
        calls = []
        fused = F.scaled_dot_product_attention
        monkeypatch.setattr(
            F, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs)
        )
        default, eager = self.make_model(), self.make_model("eager")
        expected = self.run(default, make_pixels())
        assert len(calls) == sum(TRANSFORMER_LAYERS)
        assert_close(self.run(eager, make_pixels()), expected, 1e-5)
        assert len(calls) == sum(TRANSFORMER_LAYERS)

    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    def test_attentions(self, attn_implementation):
        model = self.make_model(attn_implementation)
        pixels = make_pixels(2, 72, 100)
        with torch.no_grad():
            outputs = model(pixel_values=pixels, output_attentions=True)
        assert_close(self.tensors(outputs), self.run(model, pixels), 1e-5)
        config = self.encoder_config(model.config)
        strides = [
            s for s, n in zip(self.strides(model.config)[3:], TRANSFORMER_LAYERS, strict=True) for _ in range(n)
        ]
        assert len(outputs.attentions) == len(strides)
        for weights, stride in zip(outputs.attentions, strides, strict=True):
            patches = -(-72 // (stride * config.patch_size)) * -(-100 // (stride * config.patch_size))
            assert weights.shape == (2 * config.patch_size**2, config.num_attention_heads, patches, patches)
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))

    def test_hidden_states(self):
        model = self.make_model()
        pixels = make_pixels(2, 72, 100)
        with torch.no_grad():
            outputs = model(pixel_values=pixels, output_hidden_states=True)
        assert_close(self.tensors(outputs), self.run(model, pixels), 1e-6)
        channels = self.encoder_config(model.config).neck_hidden_sizes[:6]
        expected = [
            (2, c, -(-72 // s), -(-100 // s)) for c, s in zip(channels, self.strides(model.config), strict=True)
        ]
        assert [tuple(state.shape) for state in outputs.hidden_states] == expected[self.first_stage :]

    def test_optional_outputs_are_not_returned_by_default(self):
        with torch.no_grad():
            outputs = self.make_model()(pixel_values=make_pixels())
        assert outputs.get("hidden_states") is None
        assert outputs.get("attentions") is None
        assert "loss" not in outputs

    def test_config_enables_optional_outputs(self):
        model = self.make_model("eager")
        model.config.output_hidden_states = model.config.output_attentions = True
        with torch.no_grad():
            outputs = model(pixel_values=make_pixels())
        assert len(outputs.hidden_states) == 6 - self.first_stage
        assert len(outputs.attentions) == sum(TRANSFORMER_LAYERS)

    def test_tuple_output(self):
        model = self.make_model()
        options = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            expected = model(pixel_values=make_pixels(), **options).to_tuple()
            actual = model(pixel_values=make_pixels(), return_dict=False, **options)
        assert isinstance(actual, tuple)
        torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
    def test_any_image_size(self, size):
        model = self.make_model()
        outputs = self.run(model, make_pixels(2, *size))
        assert [tuple(tensor.shape) for tensor in outputs] == self.output_shapes(model.config, 2, *size)
        assert all(tensor.isfinite().all() for tensor in outputs)

    @pytest.mark.parametrize("patch_size", [1, 3])
    def test_any_patch_size(self, patch_size):
        model = self.make_model(patch_size=patch_size)
        outputs = self.run(model, make_pixels(2, 64, 80))
        assert [tuple(tensor.shape) for tensor in outputs] == self.output_shapes(model.config, 2, 64, 80)
        assert all(tensor.isfinite().all() for tensor in outputs)

    def test_batch_equals_single_images(self):
        model, pixels = self.make_model(), make_pixels(3, 64, 80)
        batched = self.run(model, pixels)
        single = self.run(model, pixels[1:2])
        assert_close([tensor[1:2] for tensor in batched], single, 1e-5)

    def test_channels_last_input(self):
        model, pixels = self.make_model(), make_pixels(2, 64, 80)
        expected = self.run(model, pixels)
        assert_close(self.run(model, pixels.to(memory_format=torch.channels_last)), expected, 1e-5)
        assert_close(self.run(model.to(memory_format=torch.channels_last), pixels), expected, 1e-5)

    def test_no_layer_overwrites_the_output_of_another(self):
        """Forward hooks may keep the outputs."""
        model, kept, copies = self.make_model(), {}, {}

        def keep(module, inputs, output):
            if isinstance(output, Tensor):
                kept[module], copies[module] = output, output.clone()

        for module in model.modules():
            module.register_forward_hook(keep)
        self.run(model, make_pixels())
        assert len(kept) > 250
        assert all(torch.equal(output, copies[module]) for module, output in kept.items())

    def test_input_is_not_modified(self):
        pixels = make_pixels()
        self.run(self.make_model(), pixels)
        assert torch.equal(pixels, make_pixels())

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
    def test_half_precision(self, dtype, tolerance):
        model, pixels = self.make_model(), make_pixels()
        expected = self.run(model, pixels)
        half = copy.deepcopy(model).to(dtype)
        for inputs in (pixels, pixels.to(dtype)):  # float32 inputs are accepted, too
            for actual, reference in zip(self.run(half, inputs), expected, strict=True):
                if actual.is_floating_point():
                    assert actual.isfinite().all()
                    assert relative_error(actual, reference) < tolerance

    def test_fold_batch_norm_keeps_outputs_and_model(self):
        model, pixels = self.make_model(), make_pixels(2, 64, 80)
        model.train()
        before = copy.deepcopy(model.state_dict())
        folded = fold_batch_norm(model)
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not folded.training
        assert all(layer.normalization is None for layer in folded.modules() if isinstance(layer, MobileViTConvLayer))
        assert_close(self.run(folded, pixels), self.run(model.eval(), pixels), 1e-5)

    # --- training ----------------------------------------------------------------------------------------------------

    def test_all_parameters_have_finite_gradients(self):
        loss, gradients, _ = self.train_step(self.make_model())
        assert loss.isfinite()
        assert all(gradient is not None for gradient in gradients.values()), "a parameter has no gradient"
        assert all(gradient.isfinite().all() for gradient in gradients.values())

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_gradient_checkpointing_keeps_loss_and_gradients(self, use_reentrant):
        model = self.make_model()
        checkpointed = copy.deepcopy(model)
        checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        assert checkpointed.is_gradient_checkpointing
        loss, gradients, statistics = self.train_step(model)
        actual_loss, actual_gradients, actual_statistics = self.train_step(checkpointed)
        torch.testing.assert_close(actual_loss, loss)
        torch.testing.assert_close(actual_gradients, gradients)
        assert any(name.endswith("num_batches_tracked") and count == 1 for name, count in statistics.items())
        if not use_reentrant:  # reentrant checkpointing updates the statistics twice
            torch.testing.assert_close(actual_statistics, statistics)

    def test_gradient_checkpointing_recomputes_activations(self):
        model = self.make_model()
        model.gradient_checkpointing_enable()
        runs = []
        for layer in model.modules():
            if isinstance(layer, MobileViTConvLayer):
                layer.register_forward_pre_hook(lambda layer, _: runs.append(layer))
        self.train_step(model)
        assert len(runs) > len(set(runs))

    def test_gradient_checkpointing_survives_copy_and_can_be_disabled(self):
        model = self.make_model()
        expected = self.train_step(copy.deepcopy(model))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        copied = copy.deepcopy(model)
        model.gradient_checkpointing_disable()
        torch.testing.assert_close(self.train_step(copied), expected)
        torch.testing.assert_close(self.train_step(model), expected)

    def test_bfloat16_autocast(self):
        model = self.make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        expected, *_ = self.train_step(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss, gradients, _ = self.train_step(model)
        assert abs(loss - expected) < 0.1 * expected
        assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients.values())

    # --- invalid input -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (None, r"got None, expected .*image processor"),
            (torch.rand(2, 4, 64, 64), r"got shape \(2, 4, 64, 64\), expected \(batch, 3, .*image processor"),
            (torch.rand(3, 64, 64), r"got shape \(3, 64, 64\), expected \(batch, 3, .*unsqueeze"),
            (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), r"got torch.uint8, expected floating-point.*divide by 255"),
            (torch.rand(2, 3, 64, 7), r"got images of 64x7 pixels, expected at least \d+ a side.*Resize"),
        ],
        ids=["none", "channels", "no-batch", "uint8", "small"],
    )
    def test_invalid_pixels_raise(self, pixels, message):
        with pytest.raises(ValueError, match=message):
            self.make_model()(pixel_values=pixels)

    def test_minimum_image_size_is_the_output_stride(self):
        model = self.make_model()
        stride = self.encoder_config(model.config).output_stride
        self.run(model, make_pixels(1, stride, stride))
        with pytest.raises(ValueError, match=f"expected at least {stride} a side"):
            self.run(model, make_pixels(1, stride, stride - 1))

    # --- compilers ---------------------------------------------------------------------------------------------------

    def check_compiled(self, backend: str) -> None:
        """Compare the model with its compilation into a single graph."""
        torch.compiler.reset()
        model, pixels = self.make_model(), make_pixels(2, 64, 80)
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        assert_close(self.run(compiled, pixels), self.run(model, pixels), 1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_compile(self, backend):
        self.check_compiled(backend)

    @pytest.mark.slow
    def test_compiled_train_step_equals_eager(self):
        torch.compiler.reset()
        model = self.make_model(attention_probs_dropout_prob=0.0)
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0
        loss, gradients, statistics = self.train_step(copy.deepcopy(model))
        model.compile(fullgraph=True, backend="aot_eager")
        actual_loss, actual_gradients, actual_statistics = self.train_step(model)
        torch.testing.assert_close(actual_loss, loss)
        torch.testing.assert_close(actual_gradients, gradients, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(actual_statistics, statistics)

    @pytest.mark.slow
    def test_exported_graph_accepts_all_sizes(self):
        model, smallest = self.make_model(), self.smallest_exported_side
        batch = torch.export.Dim("batch", min=1, max=64)
        height, width = (torch.export.Dim(name, min=smallest, max=2048) for name in ("height", "width"))
        exported = torch.export.export(
            model,
            (),
            kwargs={"pixel_values": make_pixels(2, smallest + 191, smallest + 191)},
            dynamic_shapes={"pixel_values": {0: batch, 2: height, 3: width}},
            strict=False,
        ).module()
        for batch_size, *extra in ((2, 191, 191), (1, 127, 255), (1, 160, 192), (3, 0, 31)):
            pixels = make_pixels(batch_size, *(smallest + pixels for pixels in extra))
            assert_close(self.run(exported, pixels), self.run(model, pixels), 1e-4)


class HeadSuite(ModelSuite):
    """Additional tests of models that accept labels and return a loss."""

    def invalid_labels(self) -> list[tuple[dict[str, Any], str]]:
        """Return invalid labels for two images of 64x64, each with the expected error message."""
        raise NotImplementedError

    def test_loss_is_returned_with_labels(self):
        model, pixels = self.make_model(), make_pixels()
        with torch.no_grad():
            outputs = model(pixel_values=pixels, **self.make_labels(2, 64, 64))
            as_tuple = model(pixel_values=pixels, **self.make_labels(2, 64, 64), return_dict=False)
        assert outputs.loss.shape == ()
        assert outputs.loss > 0
        assert_close(self.tensors(outputs), self.run(model, pixels), 1e-6)
        torch.testing.assert_close(as_tuple[0], outputs.loss)

    def test_optimizer_steps_lower_the_loss(self):
        torch.manual_seed(0)
        model = self.model_class(self.make_config())
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(10):
            losses.append(self.train_step(model)[0])
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0]

    def test_invalid_labels_raise(self):
        model = self.make_model()
        for labels, message in self.invalid_labels():
            with pytest.raises(ValueError, match=message):
                model(pixel_values=make_pixels(), **labels)

    def test_from_pretrained_with_other_num_labels(self, tmp_path):
        model = self.make_model()
        model.save_pretrained(tmp_path)
        torch.manual_seed(0)
        loaded = self.model_class.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
        assert loaded.config.num_labels == len(loaded.config.id2label) == 7
        reinitialized = []
        for name, tensor in loaded.state_dict().items():
            if tensor.shape == model.state_dict()[name].shape:
                assert torch.equal(tensor, model.state_dict()[name]), name
            else:
                reinitialized.append(name)
                assert tensor.isfinite().all()
        assert len(reinitialized) >= 2
        outputs = self.run(loaded, make_pixels())
        assert [tuple(t.shape) for t in outputs] == self.output_shapes(loaded.config, 2, 64, 64)
