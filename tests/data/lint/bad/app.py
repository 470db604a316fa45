from fastapi import FastAPI
from llama_cpp import Llama

app = FastAPI()
llm = Llama(model_path="m.gguf", n_ctx=8192)


@app.post("/v1/chat/completions")
async def chat(body: dict):
    prompt = body["prompt"]
    if len(prompt) / 4 > body.context_limit:
        return {"error": "too long"}
    return llm(prompt, max_tokens=256)
