"""Test mixins of the installed transformers version for this package's classes and, as a reference, stock MobileViT.

The classes of this package may only skip tests that stock MobileViT does not pass (see `conftest.py`).
"""

import os
import unittest

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.testing_utils import torch_device

import mobilevit_hf

from .fetch import SuiteUnavailable
from .mixins import import_mixins

try:
    modeling = import_mixins("test_modeling_common")
    pipelines = import_mixins("test_pipeline_mixin")
    backbones = import_mixins("test_backbone_common")
    configurations = import_mixins("test_configuration_common")
except SuiteUnavailable as problem:
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(str(problem), pytrace=False)
    pytest.skip(str(problem), allow_module_level=True)

pytestmark = pytest.mark.slow

TINY = {
    "image_size": 32,
    "hidden_sizes": [12, 16, 20],
    "neck_hidden_sizes": [8, 8, 12, 12, 16, 16, 32],
    "num_attention_heads": 4,
    "expand_ratio": 2.0,
    "aspp_out_channels": 16,
    "attention_probs_dropout_prob": 0.1,
    "num_labels": 10,
}
BATCH = 3


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory):
    """Replace the tiny checkpoints on the Hub by checkpoints saved by stock classes, for both sets of classes."""
    folder = tmp_path_factory.mktemp("tiny_models")
    image_processor = transformers.MobileViTImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    for model_class in Stock.all_model_classes:
        checkpoint = folder / "mobilevit" / model_class.__name__
        model_class(transformers.MobileViTConfig(**TINY)).save_pretrained(checkpoint)
        image_processor.save_pretrained(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "TRANSFORMERS_TINY_MODEL_PATH", str(folder))
        # The tests are referred to by their module in the transformers repository, "tests.pipelines...".
        for task, entry in pipelines.pipeline_test_mapping.items():
            patch.setitem(pipelines.pipeline_test_mapping, task, {"test": f"transformers_{entry['test']}"})
        yield


class TinyModel:
    """The "model tester" of the mixins: a tiny configuration and matching inputs."""

    batch_size = BATCH
    image_size = TINY["image_size"]
    is_training = True

    def __init__(self, config_class, **fields):
        self.config_class = config_class
        self.fields = TINY | fields

    def get_config(self):
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        pixel_values = modeling.floats_tensor([BATCH, 3, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}


class MobileViTTests(modeling.ModelTesterMixin):
    """Common tests of models, some of them adapted to MobileViT."""

    config_class: type[transformers.PreTrainedConfig]
    test_resize_embeddings = False
    test_torch_exportable = True
    strides = (2, 4, 8, 16, 32)  # of the hidden states, before the last convolution

    def setUp(self):
        self.model_tester = TinyModel(self.config_class)

    def run_model(self, model_class, **fields):
        """Return the outputs of a new model in evaluation mode, with some fields of the configuration changed."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config.update(fields)
        with torch.no_grad():
            return model_class(config).to(torch_device).eval()(**inputs)

    def test_config(self):
        common = ["hidden_sizes", "neck_hidden_sizes", "num_attention_heads"]
        configurations.ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=common, image_size=64
        ).run_common_tests()

    def test_hidden_states_output(self):
        channels = TINY["neck_hidden_sizes"][-1 - len(self.strides) : -1]
        sides = [TINY["image_size"] // stride for stride in self.strides]
        expected = [(BATCH, width, side, side) for width, side in zip(channels, sides, strict=True)]
        for model_class in self.all_model_classes:
            hidden_states = self.run_model(model_class, output_hidden_states=True).hidden_states
            assert [tuple(features.shape) for features in hidden_states] == expected

    @unittest.skip("vision models have no token embeddings")
    def test_model_get_set_embeddings(self):
        pass


class AttentionTests:
    """Tests of attention weights, which stock MobileViT does not return."""

    def test_attention_outputs(self):
        # (batch * pixels per patch, heads, patches, patches); the last feature map, one pixel, is resized to a patch.
        layers_and_patches = ((2, 4), (4, 1), (3, 1))
        expected = [
            (BATCH * 2 * 2, TINY["num_attention_heads"], patches, patches)
            for layers, patches in layers_and_patches
            for _ in range(layers)
        ]
        for model_class in self.all_model_classes:
            attentions = self.run_model(model_class, output_attentions=True).attentions
            assert [tuple(weights.shape) for weights in attentions] == expected


class HeadTests(MobileViTTests, pipelines.PipelineTesterMixin):
    """Tests of model, classifier and segmentation model, and of their pipelines."""

    def test_output_shapes(self):
        model, classifier, segmenter = self.all_model_classes
        outputs = self.run_model(model)
        assert outputs.last_hidden_state.shape == (BATCH, TINY["neck_hidden_sizes"][-1], 1, 1)
        assert outputs.pooler_output.shape == (BATCH, TINY["neck_hidden_sizes"][-1])
        assert self.run_model(classifier).logits.shape == (BATCH, TINY["num_labels"])
        for stride in (8, 16, 32):
            side = TINY["image_size"] // stride
            logits = self.run_model(segmenter, output_stride=stride).logits
            assert logits.shape == (BATCH, TINY["num_labels"], side, side)


def model_classes(package):
    """Return the model classes of stock transformers or of this package."""
    return package.MobileViTModel, package.MobileViTForImageClassification, package.MobileViTForSemanticSegmentation


def pipeline_tasks(package):
    tasks = ("image-feature-extraction", "image-classification", "image-segmentation")
    return dict(zip(tasks, model_classes(package), strict=True))


class Stock(HeadTests, unittest.TestCase):
    """Stock MobileViT, the reference for tests that may be skipped."""

    config_class = transformers.MobileViTConfig
    all_model_classes = model_classes(transformers)
    pipeline_model_mapping = pipeline_tasks(transformers)
    has_attentions = False


class MobileViT(AttentionTests, HeadTests, unittest.TestCase):
    """The drop-in replacements of stock classes."""

    reference = Stock
    config_class = mobilevit_hf.MobileViTConfig
    all_model_classes = model_classes(mobilevit_hf)
    pipeline_model_mapping = pipeline_tasks(mobilevit_hf)
    test_can_init_all_missing_weights_before_2023 = True

    def test_all_tests_of_stock_are_included(self):
        names = unittest.defaultTestLoader.getTestCaseNames
        assert set(names(Stock)) <= set(names(type(self)))


class Backbone(backbones.BackboneTesterMixin, unittest.TestCase):
    """Common tests of backbones. Without a stock backbone as reference, no test may be skipped."""

    reference = None
    config_class = mobilevit_hf.MobileViTBackboneConfig
    all_model_classes = (mobilevit_hf.MobileViTBackbone,)

    def setUp(self):
        self.model_tester = TinyModel(self.config_class, out_features=["stage3", "stage4", "stage5"])


class BackboneModel(AttentionTests, MobileViTTests, unittest.TestCase):
    """Common tests of models for the backbone."""

    reference = Stock
    config_class = mobilevit_hf.MobileViTBackboneConfig
    all_model_classes = (mobilevit_hf.MobileViTBackbone,)
    strides = (2, *MobileViTTests.strides)
    test_can_init_all_missing_weights_before_2023 = True
    test_torch_save_load = None  # applies to classes of AutoModel
    test_retain_grad_hidden_states_attentions = None  # applies to classes whose first output is a tensor

    @pytest.fixture(autouse=True)
    def _list_as_backbone(self, monkeypatch):
        """The training tests exclude backbones by this mapping."""
        monkeypatch.setitem(MODEL_FOR_BACKBONE_MAPPING_NAMES, "mobilevit_backbone", "MobileViTBackbone")


class TinyDetector(TinyModel):
    """Model tester of the detector, whose configuration contains that of the backbone."""

    def get_config(self):
        fields = {name: value for name, value in self.fields.items() if name not in ("image_size", "num_labels")}
        return self.config_class(
            backbone_config=fields,
            image_size=self.image_size,
            level_channels=[24, 20, 16, 16, 12, 12],
            num_labels=self.fields["num_labels"],
        )


class Detector(AttentionTests, MobileViTTests, unittest.TestCase):
    """Common tests of models for the detector."""

    reference = Stock
    config_class = mobilevit_hf.MobileViTSSDLiteConfig
    all_model_classes = (mobilevit_hf.MobileViTSSDLiteForObjectDetection,)
    strides = (2, *MobileViTTests.strides)
    test_can_init_all_missing_weights_before_2023 = True
    test_torch_save_load = None  # applies to classes of AutoModel

    def setUp(self):
        self.model_tester = TinyDetector(self.config_class)

    def test_config(self):
        configurations.ConfigTester(self, config_class=self.config_class, has_text_modality=False).run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            label = {
                "class_labels": torch.tensor([0, 3], device=torch_device),
                "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.2, 0.3, 0.1, 0.2]], device=torch_device),
            }
            inputs["labels"] = [label] * BATCH
        return inputs
