"""The llama.cpp tools: where they are, how they are called, what they print."""
