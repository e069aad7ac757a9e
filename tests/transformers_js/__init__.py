"""The program that runs a published classifier with transformers.js, in Node and in a browser."""
