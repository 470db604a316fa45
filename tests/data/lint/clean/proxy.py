import httpx
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

app = FastAPI()
engine = httpx.AsyncClient(base_url="http://127.0.0.1:8080", timeout=600)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> StreamingResponse:
    """Passes a chat on to llama-server."""
    body = await request.json()
    upstream = engine.build_request("POST", "/v1/chat/completions", json={"messages": body["messages"]})
    answer = await engine.send(upstream, stream=True)
    return StreamingResponse(answer.aiter_raw(), status_code=answer.status_code)
