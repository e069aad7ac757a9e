"""Stand-in for the table of common configuration values, which the source distribution does not contain."""

# Values other than the default for the fields of every configuration.
config_common_kwargs = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "cat", 1: "dog"},
    "is_encoder_decoder": True,
    "label2id": {"cat": 0, "dog": 1},
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
