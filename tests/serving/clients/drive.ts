// Drives the generated client for tests: a command a line in JSON on stdin, its result a line on stdout.
import * as readline from "node:readline";
import { Client, ClientError, LIMITS, SseParser, retryAfter, waitBefore } from "./quantplan-client.js";
import type { Limits, Message, Options, Piece, SseEvent } from "./quantplan-client.js";

interface Command {
  readonly op: string;
  readonly url: string;
  readonly apiKey?: string;
  readonly timeouts?: Partial<Limits["timeouts"]>;
  readonly retries?: Partial<Limits["retries"]>;
  readonly embeddings?: boolean;
  readonly messages: Message[];
  readonly prompt: string;
  readonly texts: string[];
  readonly options: Options;
  readonly after: number;
  readonly how: string;
  readonly count: number;
  readonly cases: { readonly bytes: string; readonly cuts: number[] }[];
}

function clientOf(told: Command): Client {
  const limits: Limits = {
    ...LIMITS,
    embeddings: told.embeddings ?? LIMITS.embeddings,
    timeouts: { ...LIMITS.timeouts, ...told.timeouts },
    retries: { ...LIMITS.retries, ...told.retries },
  };
  return new Client({ baseUrl: told.url, limits, ...(told.apiKey === undefined ? {} : { apiKey: told.apiKey }) });
}

/** Reads so many pieces, or so long, and ends the stream in one of the ways there are. */
async function left(told: Command): Promise<unknown> {
  const controller = new AbortController();
  const client = clientOf(told);
  const stream = client.streamChat(told.messages, { ...told.options, signal: controller.signal });
  const pieces: Piece[] = [];
  if (told.how === "timer") setTimeout(() => stream.abort(), told.after);
  try {
    for await (const piece of stream) {
      pieces.push(piece);
      if (told.how === "timer" || pieces.length < told.after) continue;
      if (told.how === "break") break;
      if (told.how === "abort") stream.abort();
      if (told.how === "signal") controller.abort(new Error("enough"));
    }
  } catch (error) {
    return { ended: error instanceof ClientError ? error.name : String(error), pieces: pieces.length };
  }
  return { ended: null, pieces: pieces.length, text: pieces.map((piece) => piece.text).join("") };
}

function parsed(bytes: Uint8Array, cuts: readonly number[]): SseEvent[] | string {
  const parser = new SseParser();
  const events: SseEvent[] = [];
  try {
    let start = 0;
    for (const end of [...cuts, bytes.length]) {
      events.push(...parser.feed(bytes.subarray(start, end)));
      start = end;
    }
  } catch (error) {
    return (error as Error).name;
  }
  return events;
}

async function done(told: Command): Promise<unknown> {
  switch (told.op) {
    case "limits":
      return LIMITS;
    case "chat":
      return clientOf(told).chat(told.messages, told.options);
    case "complete":
      return clientOf(told).complete(told.prompt, told.options);
    case "parallel": {
      const client = clientOf(told);
      const all = Array.from({ length: told.count }, () => client.chat(told.messages, told.options));
      return (await Promise.all(all)).map((answer) => answer.text);
    }
    case "left":
      return left(told);
    case "countChat":
      return clientOf(told).countChat(told.messages);
    case "countText":
      return clientOf(told).countText(told.prompt);
    case "embed":
      return clientOf(told).embed(told.texts);
    case "sse":
      return told.cases.map(({ bytes, cuts }) => parsed(Buffer.from(bytes, "base64"), cuts));
    case "waits":
      return [
        waitBefore(LIMITS.retries, 1, null, 1e9, 0.999),
        waitBefore(LIMITS.retries, 4, null, 1e9, 0.5),
        waitBefore(LIMITS.retries, 1, 2000, 1e9, 0),
        waitBefore(LIMITS.retries, 1, 2000, 1999, 0),
        waitBefore(LIMITS.retries, LIMITS.retries.tries, null, 1e9, 0),
        retryAfter("7"),
        retryAfter("Thu, 01 Jan 2026 00:00:09 GMT", Date.UTC(2026, 0, 1)),
        retryAfter("-1"),
        retryAfter("soon"),
        retryAfter(null),
      ];
    default:
      throw new Error(`no such command: ${told.op}`);
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const began = performance.now();
  let result: object;
  try {
    result = { value: await done(JSON.parse(line) as Command) };
  } catch (error) {
    const told = error as Error;
    result = { error: { ...told, name: told.name, message: told.message, kind: told instanceof ClientError } };
  }
  console.log(JSON.stringify({ ...result, seconds: (performance.now() - began) / 1000 }));
}
