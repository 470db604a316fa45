export async function ask(base: string, content: string): Promise<Response> {
  for (let attempt = 0; attempt < 4; attempt++) {
    const answer = await fetch(`${base}/v1/chat/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages: [{ role: "user", content }], stream: true }),
      signal: AbortSignal.timeout(60_000),
    });
    if (answer.status !== 429 && answer.status !== 503) return answer;
    await new Promise((done) => setTimeout(done, 2 ** attempt * 250 * Math.random()));
  }
  throw new Error("the context of the server is full: try later");
}
