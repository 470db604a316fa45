// The official Node package against a base URL: what tests/serving/openai_clients.py does in Python. Prints JSON.
import OpenAI from "openai";

const { BASE_URL, API_KEY, MODEL, QUESTION, ASKED, TOOLS, TOOL_RESULT } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const messages = [{ role: "user", content: QUESTION }];
const asked = { model: MODEL, messages, temperature: 0, max_tokens: 24 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const chat = (await client.chat.completions.create(asked)).choices[0].message.content;
let streamed = "";
for await (const piece of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += piece.choices[0]?.delta?.content ?? "";
}

const prompt = { model: MODEL, prompt: "The next day ", temperature: 0, max_tokens: 16 };
const completion = (await client.completions.create(prompt)).choices[0].text;
let streamedCompletion = "";
for await (const part of await client.completions.create({ ...prompt, stream: true })) {
  streamedCompletion += part.choices[0].text;
}

const tools = { model: MODEL, temperature: 0, max_tokens: 64, tools: JSON.parse(TOOLS) };
const turns = [{ role: "user", content: ASKED }];
const called = (await client.chat.completions.create({ ...tools, messages: turns })).choices[0].message;
const call = called.tool_calls[0];
turns.push(called, { role: "tool", tool_call_id: call.id, content: TOOL_RESULT });
const said = (await client.chat.completions.create({ ...tools, messages: turns })).choices[0].message.content;

let embeddings = null;
try {
  await client.embeddings.create({ model: MODEL, input: "a word" }, { maxRetries: 0 });
} catch (error) {
  if (!(error instanceof OpenAI.APIError) || !error.message.includes("embeddings")) throw error;
  embeddings = error.status;
}

console.log(
  JSON.stringify({
    models,
    chat,
    streamed,
    completion,
    streamed_completion: streamedCompletion,
    tool: [call.function.name, JSON.parse(call.function.arguments), said.trim()],
    embeddings,
  }),
);
