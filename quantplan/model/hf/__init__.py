"""From a Hugging Face configuration to the GGUF header that the pinned converter would write."""
