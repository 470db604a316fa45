"""What a model is: GGUF headers, Hugging Face configurations, the hub, the catalog."""
