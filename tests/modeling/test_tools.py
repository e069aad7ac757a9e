"""Tools that hook, trace, quantize or adapt a model give the same results as with stock transformers."""

import copy
import pickle

import pytest
import torch
import transformers
from model_suite import make_pixels
from torch import Tensor, nn

import mobilevit_hf

CLASSES = ["MobileViTForImageClassification", "MobileViTForSemanticSegmentation", "MobileViTModel"]
SOURCES = dict(zip(CLASSES, ["image-classification", "image-segmentation", "image-feature-extraction"], strict=True))


def load(name, checkpoints):
    """Return this package's model and stock's from the same checkpoint, in evaluation mode."""
    folder = checkpoints[SOURCES[name]]
    return [getattr(library, name).from_pretrained(folder).eval() for library in (mobilevit_hf, transformers)]


def record_calls(model, register, select):
    """Register a hook on each module; return a dict that the hooks fill with what `select` returns, by module name."""
    record = {}
    for name, module in model.named_modules():
        getattr(module, register)(lambda *arguments, name=name: record.update({name: select(*arguments)}))
    return record


@pytest.fixture
def classifiers(checkpoints):
    """The same tiny classifier as a model of this package and of stock transformers."""
    return load(CLASSES[0], checkpoints)


class Logits(nn.Module):
    """Model that returns logits, as most tools expect."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def assert_equal_results(results, tolerance=1e-5):
    actual, expected = results
    scale = float(expected.detach().abs().max())
    assert scale > 0
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


# --- hooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_hooks_see_the_tensors_of_stock(name, grad, checkpoints):
    """Kept until after the forward pass, which must not overwrite them."""
    models = load(name, checkpoints)
    ours, stock = (
        record_calls(model, "register_forward_hook", lambda module, inputs, output: (type(module), *inputs, output))
        for model in models
    )
    with torch.set_grad_enabled(grad):
        for model in models:
            model(make_pixels(2, 70, 64))
    assert ours.keys() == stock.keys()
    for path, (module_type, *tensors) in stock.items():
        own_type, *own_tensors = ours[path]
        if module_type.__module__.startswith(("torch.", "transformers.activations")):
            assert own_type is module_type, path
        for actual, expected in zip(own_tensors, tensors, strict=True):
            # Stock's segmentation head takes all feature maps, ours the last one.
            if isinstance(expected, Tensor) and isinstance(actual, Tensor):
                torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4, msg=path)
    assert sum(isinstance(record[-1], Tensor) for record in ours.values()) > 250


def test_backward_hooks_see_the_gradients_of_stock(classifiers):
    ours, stock = (
        record_calls(model, "register_full_backward_hook", lambda module, inputs, outputs: outputs[0])
        for model in classifiers
    )
    for model in classifiers:
        model(make_pixels(2, 70, 64)).logits.square().sum().backward()
    assert ours.keys() == stock.keys()
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)


def test_hooks_change_the_computation_as_in_stock(classifiers):
    logits = []
    for model in classifiers:
        encoder = model.mobilevit.encoder.layer
        encoder[2].register_forward_hook(lambda module, args, output: output * 0.5)
        encoder[3].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        transformer = encoder[4].transformer.layer
        transformer[0].attention.attention.register_forward_hook(lambda module, args, output: output * 2)
        transformer[1].output.register_forward_pre_hook(lambda module, args: (args[0] * 2, args[1]))
        transformer[2].attention.attention.dropout.register_forward_hook(lambda module, args, output: output * 0.5)
        logits.append(model(make_pixels()).logits)
    assert_equal_results(logits)


# --- tracing and copies ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_traced_model_without_output_classes(name, checkpoints):
    """Of `from_pretrained(..., return_dict=False)`, which tools for TorchScript ask for."""
    results = []
    for model in load(name, checkpoints):
        model.config.return_dict = False
        results.append(torch.jit.trace(model, make_pixels())(make_pixels() / 2)[0])
    assert_equal_results(results)


def test_copied_and_pickled_model(classifiers):
    model = pickle.loads(pickle.dumps(copy.deepcopy(classifiers[0])))
    assert_equal_results([model(make_pixels()).logits, classifiers[1](make_pixels()).logits])


def test_meta_device(classifiers):
    assert classifiers[0].to("meta")(make_pixels().to("meta")).logits.shape == (2, 4)


# --- quantization ----------------------------------------------------------------------------------------------------


def test_dynamic_quantization_replaces_as_many_layers(classifiers):
    counts, logits = [], []
    for model in classifiers:
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        counts.append(sum(isinstance(layer, torch.ao.nn.quantized.dynamic.Linear) for layer in quantized.modules()))
        logits.append(quantized(make_pixels()).logits)
    assert counts == [55, 55]
    assert_equal_results(logits, 0.05)


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(config, classifiers):
    """At a size where the faster layers would apply; also in the copy that pipelines run."""
    quantization = pytest.importorskip("torchao.quantization")
    logits, pixels = [], make_pixels(8, 256, 256)
    for model in classifiers:
        quantization.quantize_(model, getattr(quantization, config)())
        with torch.no_grad():
            logits.append(model(pixels).logits)
    assert_equal_results(logits, 0.05)
    with torch.no_grad():
        assert_equal_results([mobilevit_hf.pipelines.fold_batch_norm(classifiers[0])(pixels).logits, logits[1]], 0.05)


# --- adaptation and attribution --------------------------------------------------------------------------------------


def test_low_rank_adaptation(classifiers):
    peft = pytest.importorskip("peft")
    logits = []
    for model in classifiers:
        targets = ["query", "key", "value", "dense"]
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2))
        weights = {name: weight for name, weight in adapted.named_parameters() if "lora_" in name}
        assert len(weights) == 9 * 6 * 2
        torch.manual_seed(0)
        for weight in weights.values():
            nn.init.normal_(weight, std=0.1)
        before = adapted(pixel_values=make_pixels()).logits
        torch.testing.assert_close(adapted.merge_and_unload()(make_pixels()).logits, before, atol=1e-4, rtol=1e-4)
        logits.append(before)
    assert_equal_results(logits)


LAYERS = {
    "block": lambda model: model.mobilevit.encoder.layer[-1],
    "normalization": lambda model: model.mobilevit.conv_1x1_exp.normalization,
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["LayerGradCam", "LayerActivation", "LayerIntegratedGradients", "LayerConductance"])
def test_captum_layer_attribution(method, layer, classifiers):
    attr = pytest.importorskip("captum.attr")
    options = {
        "LayerActivation": {},
        "LayerIntegratedGradients": {"target": 1, "n_steps": 4, "attribute_to_layer_input": True},
        "LayerConductance": {"target": 1, "n_steps": 4},
    }.get(method, {"target": 1})
    results = []
    for model in classifiers:
        attribution = getattr(attr, method)(Logits(model), LAYERS[layer](model))
        results.append(attribution.attribute(make_pixels(), **options).detach())
    assert_equal_results(results, 1e-4)


@pytest.mark.parametrize("method", ["Saliency", "DeepLift", "GuidedBackprop"])
def test_captum_attribution(method, classifiers):
    attr = pytest.importorskip("captum.attr")
    methods = [getattr(attr, method)(Logits(model)) for model in classifiers]
    assert_equal_results([method.attribute(make_pixels(), target=1).detach() for method in methods], 1e-4)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["GradCAM", "EigenCAM", "LayerCAM"])
def test_grad_cam(method, layer, classifiers):
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    maps = []
    for model in classifiers:
        with getattr(grad_cam, method)(Logits(model), [LAYERS[layer](model)]) as cam:
            maps.append(torch.from_numpy(cam(make_pixels(), None)))
    assert_equal_results(maps, 1e-3)
