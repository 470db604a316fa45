export async function ask(base: string, text: string): Promise<string> {
  for (let attempt = 0; attempt < 5; attempt++) {
    const answer = await fetch(`${base}/v1/chat/completions`, {
      method: "POST",
      body: JSON.stringify({
        prompt: text,
        stream: false,
      }),
    });
    if (answer.ok) return (await answer.json()).choices[0].message.content;
    await new Promise((done) => setTimeout(done, 500 * attempt));
  }
  throw new Error("failed");
}
