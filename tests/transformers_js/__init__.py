"""What runs a published classifier with transformers.js: the same program in Node and in a browser."""
