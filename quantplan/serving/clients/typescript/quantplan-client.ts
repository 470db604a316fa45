// A client for one planned model server, for Node 20 and later and for browsers: the platform's fetch and nothing else.
// The block between the marks is written by quantplan from a plan; nothing else in this file differs.

/** Milliseconds. `count` is for the tokens of a prompt, asked before each generation, and so also the time in which a
 * server must be reached; `firstToken` runs from sending a request, `betweenTokens` from waiting for the next event,
 * `total` from the call: waiting for a place, retries and all. */
export interface Timeouts {
  readonly countMs: number;
  readonly firstTokenMs: number;
  readonly betweenTokensMs: number;
  readonly totalMs: number;
}

/** How often a request is sent at most, and the waits between: random up to base × 2^n, at most cap; a longer
 * Retry-After than the longest is not waited for. */
export interface Retries {
  readonly tries: number;
  readonly baseMs: number;
  readonly capMs: number;
  readonly longestRetryAfterMs: number;
}

/** `nCtx` is a request's context in tokens, `slots` how many requests run at once. What is expected is for full slots
 * and the longest prompt; null where the plan predicts no speed. */
export interface Limits {
  readonly model: string;
  readonly artifactSha256: string | null;
  readonly baseUrl: string;
  readonly nCtx: number;
  readonly slots: number;
  readonly maxTokens: number;
  readonly embeddings: boolean;
  readonly expectedFirstTokenMs: number | null;
  readonly expectedPerTokenMs: number | null;
  readonly timeouts: Timeouts;
  readonly retries: Retries;
}

// plan:begin
export const LIMITS: Limits = {
  model: "quantplan-tiny",
  artifactSha256: null,
  baseUrl: "http://127.0.0.1:8080",
  nCtx: 1024,
  slots: 2,
  maxTokens: 1024,
  embeddings: false,
  expectedFirstTokenMs: null,
  expectedPerTokenMs: null,
  timeouts: { countMs: 30000, firstTokenMs: 600000, betweenTokensMs: 600000, totalMs: 3600000 },
  retries: { tries: 5, baseMs: 500, capMs: 8000, longestRetryAfterMs: 60000 },
};
// plan:end

// ---- what a call may fail with

export type Phase = "count" | "first token" | "between tokens" | "total";

/** Everything this client throws, but for wrong arguments. `partial` is the text that came before. */
export class ClientError extends Error {
  partial = "";
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The prompt and the answer asked for do not fit in a request's context. null where nobody counted. */
export class ContextExceeded extends ClientError {
  readonly promptTokens: number | null;
  readonly maxTokens: number | null;
  readonly nCtx: number | null;
  constructor(promptTokens: number | null, maxTokens: number | null, nCtx: number | null) {
    const prompt = promptTokens === null ? "the prompt" : `the prompt's ${promptTokens} tokens`;
    const answer = maxTokens === null ? "an answer" : `an answer of ${maxTokens} tokens`;
    super(`${prompt} and ${answer} do not fit in ${nCtx ?? "the"} tokens of context`);
    this.promptTokens = promptTokens;
    this.maxTokens = maxTokens;
    this.nCtx = nCtx;
  }
}

/** More tokens were asked for than an answer may have. */
export class AnswerTooLong extends ClientError {
  readonly maxTokens: number;
  readonly limit: number;
  constructor(maxTokens: number, limit: number) {
    super(`an answer of ${maxTokens} tokens was asked for, ${limit} are allowed`);
    this.maxTokens = maxTokens;
    this.limit = limit;
  }
}

/** The plan serves vectors or text, and the other was asked for. */
export class NotServed extends ClientError {
  constructor(model: string, what: string) {
    super(`${model} is served without ${what}`);
  }
}

/** The server said no with a status; `code` is the error's own word for it. */
export class HttpError extends ClientError {
  readonly status: number;
  readonly code: string | null;
  constructor(status: number, code: string | null, message: string) {
    super(`${status}: ${message}`);
    this.status = status;
    this.code = code;
  }
}

/** The request is wrong (4xx, and any status that is no answer): never sent again. */
export class RequestRefused extends HttpError {}

/** The server failed at it (5xx but 503): never sent again, the engine may have begun. */
export class ServerFailed extends HttpError {}

/** 429 or 503 until the last try, or for longer than may be waited. */
export class Busy extends HttpError {
  readonly retryAfterMs: number | null;
  tries = 1;
  constructor(status: number, code: string | null, message: string, retryAfterMs: number | null) {
    super(status, code, message);
    this.retryAfterMs = retryAfterMs;
  }
}

/** No connection, or none that held until the first token, in any try. */
export class Unreachable extends ClientError {
  tries = 1;
}

/** The answer had begun and did not end as it must. It is never asked for again. */
export class Interrupted extends ClientError {}

/** The server reported an error within its answer. */
export class StreamFailed extends ClientError {
  readonly code: string | null;
  constructor(code: string | null, message: string) {
    super(message);
    this.code = code;
  }
}

/** What came is no answer of this API: another content type, bytes that are not UTF-8, no JSON, too long a line. */
export class BadAnswer extends ClientError {}

/** Nothing came for as long as the phase may take. The connection is closed: the server stops generating. */
export class TimedOut extends ClientError {
  readonly phase: Phase;
  readonly ms: number;
  constructor(phase: Phase, ms: number) {
    super(`${phase}: nothing within ${ms / 1000} s`);
    this.phase = phase;
    this.ms = ms;
  }
}

/** The caller ended it: by its signal, or by abort(). */
export class Aborted extends ClientError {}

// ---- server-sent events

/** One event; `name` is "message" where the stream gives none. */
export interface SseEvent {
  readonly name: string;
  readonly data: string;
}

const MAX_LINE = 4 * 1024 * 1024; // UTF-16 units of a line, and of an event's data

/** Events from bytes in pieces of any size, by the HTML standard: lines end with CR, LF or CRLF, comments are skipped,
 * lines of data are joined, a rest without a blank line after it is no event. Bytes that are not UTF-8 and lines and
 * events without end are a BadAnswer. */
export class SseParser {
  #decoder = new TextDecoder("utf-8", { fatal: true });
  #line = "";
  #data: string[] = [];
  #size = 0;
  #name = "";
  #afterCr = false;

  /** Whether no line or event has begun but a comment's: what came so far says nothing. */
  get idle(): boolean {
    return this.#data.length === 0 && this.#name === "" && (this.#line === "" || this.#line.startsWith(":"));
  }

  /** The events that end within a piece. */
  feed(piece: Uint8Array): SseEvent[] {
    let text: string;
    try {
      text = this.#decoder.decode(piece, { stream: true });
    } catch (error) {
      throw new BadAnswer("the stream is not UTF-8", { cause: error });
    }
    const events: SseEvent[] = [];
    let start = 0;
    if (this.#afterCr && text !== "") {
      this.#afterCr = false;
      if (text[0] === "\n") start = 1;
    }
    const ends = /[\r\n]/g;
    ends.lastIndex = start;
    for (let found = ends.exec(text); found !== null; found = ends.exec(text)) {
      this.#add(text.slice(start, found.index));
      this.#endLine(events);
      start = found.index + 1;
      if (found[0] === "\r") {
        if (start === text.length) this.#afterCr = true;
        else if (text[start] === "\n") start += 1;
      }
      ends.lastIndex = start;
    }
    this.#add(text.slice(start));
    return events;
  }

  #add(text: string): void {
    this.#line += text;
    if (this.#line.length > MAX_LINE) throw new BadAnswer(`a line of the stream is longer than ${MAX_LINE}`);
  }

  #endLine(events: SseEvent[]): void {
    const line = this.#line;
    this.#line = "";
    if (line === "") {
      if (this.#data.length > 0) events.push({ name: this.#name || "message", data: this.#data.join("\n") });
      this.#data = [];
      this.#size = 0;
      this.#name = "";
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") {
      this.#size += value.length + 1;
      if (this.#size > MAX_LINE) throw new BadAnswer(`an event of the stream is longer than ${MAX_LINE}`);
      this.#data.push(value);
    } else if (name === "event") {
      this.#name = value;
    }
  }
}

// ---- what is asked and what comes back

export interface Message {
  readonly role: "system" | "developer" | "user" | "assistant" | "tool";
  readonly content?: string | readonly Json[] | null;
  readonly name?: string;
  readonly tool_calls?: readonly Json[];
  readonly tool_call_id?: string;
}

export type Json = { readonly [key: string]: unknown };

/** What a request may ask for, in the API's words. Without max_tokens the answer may fill the context; `signal` ends
 * it, `timeoutMs` is this call's own total, `extra` joins the body as it is. */
export interface Options {
  readonly max_tokens?: number;
  readonly temperature?: number;
  readonly top_p?: number;
  readonly top_k?: number;
  readonly min_p?: number;
  readonly seed?: number;
  readonly stop?: string | readonly string[];
  readonly tools?: readonly Json[];
  readonly tool_choice?: string | Json;
  readonly response_format?: Json;
  readonly signal?: AbortSignal;
  readonly timeoutMs?: number;
  readonly extra?: Json;
}

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
}

/** A call the model makes, or a piece of one: then the texts are to be joined by index. */
export interface ToolCall {
  readonly index: number;
  readonly id: string;
  readonly name: string;
  readonly arguments: string;
}

/** One event of a stream. `raw` is all the server said. */
export interface Piece {
  readonly text: string;
  readonly reasoning: string;
  readonly toolCalls: readonly ToolCall[];
  readonly finishReason: string | null;
  readonly usage: Usage | null;
  readonly raw: Json;
}

/** A whole answer. `finishReason` is "stop", "length", "tool_calls", or null where the server gave none. */
export interface Answer {
  readonly text: string;
  readonly reasoning: string;
  readonly toolCalls: readonly ToolCall[];
  readonly finishReason: string | null;
  readonly usage: Usage | null;
}

export interface ClientOptions {
  /** The server's root, with or without /v1. */
  readonly baseUrl?: string;
  /** Sent as a bearer token. Keep it out of pages that others can read. */
  readonly apiKey?: string;
  readonly limits?: Limits;
  readonly fetch?: typeof fetch;
}

type Body = Record<string, unknown>;

// what this client sets itself; several answers would take several slots
const OWN = ["model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"];
const NEVER = [...OWN, "n_predict", "n", "n_cmpl"];
const TOO_LONG = ["exceed_context_size_error", "context_length_exceeded"]; // llama-server's word, the gateway's
const CHAT = "/v1/chat/completions";
const COMPLETIONS = "/v1/completions";
const REFUSAL_MS = 5000; // for the body of a refusal
const MAX_BODY = 64 * 1024 * 1024;
// Node's words for a connection that failed; browsers have none
const LOST = /^(ECONN\w+|EPIPE|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EHOST\w+|ENET\w+|UND_ERR_(SOCKET|CONNECT_TIMEOUT))$/;

// ---- the client

/** Talks to the planned server: as many requests at once as it has slots, the others wait. */
export class Client {
  readonly limits: Limits;
  readonly #root: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: typeof fetch;
  readonly #places: Places;

  constructor(options: ClientOptions = {}) {
    this.limits = options.limits ?? LIMITS;
    this.#root = rootOf(options.baseUrl ?? this.limits.baseUrl);
    this.#headers = { "content-type": "application/json" };
    if (options.apiKey !== undefined) this.#headers["authorization"] = `Bearer ${options.apiKey}`;
    new Headers(this.#headers); // a key that cannot be sent is a TypeError here and now
    this.#fetch = options.fetch ?? ((input, init) => fetch(input, init));
    this.#places = new Places(this.limits.slots);
  }

  /** The whole answer to a chat. It is streamed from the server, so that a lost connection is seen at once. */
  chat(messages: readonly Message[], options: Options = {}): Promise<Answer> {
    return whole(this.streamChat(messages, options));
  }

  /** The whole continuation of a text. */
  complete(prompt: string, options: Options = {}): Promise<Answer> {
    return whole(this.streamComplete(prompt, options));
  }

  /** `for await (const piece of client.streamChat(…))`: leaving the loop ends the answer, abort() does from outside. */
  streamChat(messages: readonly Message[], options: Options = {}): Stream {
    return this.#stream(CHAT, { messages }, options);
  }

  streamComplete(prompt: string, options: Options = {}): Stream {
    return this.#stream(COMPLETIONS, { prompt }, options);
  }

  /** Tokens of a chat's prompt, template included, as the server counts them; null where it does not count. */
  async countChat(messages: readonly Message[], options: Options = {}): Promise<number | null> {
    return this.#timed(options, (call) => this.#count(CHAT, bodyOf(this.limits, { messages }, options), call));
  }

  /** Tokens of a text, as the server counts them for a completion. */
  async countText(text: string, options: Options = {}): Promise<number | null> {
    return this.#timed(options, (call) => this.#count(COMPLETIONS, { prompt: text }, call));
  }

  /** A vector for each text, in their order. */
  async embed(texts: readonly string[], options: Options = {}): Promise<number[][]> {
    if (!this.limits.embeddings) throw new NotServed(this.limits.model, "embeddings");
    return this.#timed(options, async (call) => {
      for (const prompt of texts) {
        answerTokens(this.limits, undefined, await this.#count(COMPLETIONS, { prompt }, call));
      }
      const leave = await this.#places.enter(call);
      try {
        const asked = { model: this.limits.model, input: texts };
        const { firstTokenMs } = this.limits.timeouts;
        return vectors(await this.#ask("/v1/embeddings", asked, call, "first token", firstTokenMs), texts.length);
      } finally {
        leave();
      }
    });
  }

  #stream(path: string, content: Body, options: Options): Stream {
    if (this.limits.embeddings) throw new NotServed(this.limits.model, "generation");
    const body = bodyOf(this.limits, content, options);
    return new Stream(options, this.limits, (call) => this.#open(path, body, options, call));
  }

  async #timed<T>(options: Options, work: (call: Call) => Promise<T>): Promise<T> {
    const call = new Call(options.timeoutMs ?? this.limits.timeouts.totalMs, options.signal);
    try {
      return await work(call);
    } finally {
      call.end();
    }
  }

  /** Counts, waits for a place, and sends a generation as often as it may be: its events, from the first on. */
  async #open(path: string, body: Body, options: Options, call: Call): Promise<Exchange> {
    answerTokens(this.limits, options.max_tokens, null);
    const promptTokens = await this.#count(path, body, call);
    const max_tokens = answerTokens(this.limits, options.max_tokens, promptTokens);
    call.onEnd(await this.#places.enter(call));
    const { firstTokenMs } = this.limits.timeouts;
    return this.#retrying(call, async () => {
      const exchange = await this.#send(path, { ...body, max_tokens }, call, "first token", firstTokenMs);
      if (exchange.contentType !== "text/event-stream") {
        throw new BadAnswer(`the answer is ${exchange.contentType || "of no type"}, not a stream of events`);
      }
      if (!(await exchange.first(firstTokenMs))) throw exchange.endedEarly();
      return exchange;
    });
  }

  /** The answer's object to a request that generates nothing. */
  async #ask(path: string, body: Body, call: Call, phase: Phase, ms: number): Promise<Body> {
    return this.#retrying(call, async () => {
      const exchange = await this.#send(path, body, call, phase, ms);
      return objectOf(await exchange.rest(phase, ms), "the answer");
    });
  }

  /** null where the server refuses: to the request itself it will say why. */
  async #lookedUp(path: string, body: Body, call: Call): Promise<Body | null> {
    try {
      return await this.#ask(path, body, call, "count", this.limits.timeouts.countMs);
    } catch (error) {
      if (error instanceof HttpError && !(error instanceof Busy)) return null;
      throw error;
    }
  }

  async #count(path: string, body: Body, call: Call): Promise<number | null> {
    if (path === COMPLETIONS) return this.#tokenize(String(body["prompt"]), call);
    const told = await this.#lookedUp(`${path}/input_tokens`, { ...body, stream: undefined }, call);
    if (told !== null) return typeof told["input_tokens"] === "number" ? told["input_tokens"] : null;
    const rendered = await this.#lookedUp("/apply-template", { ...body, stream: undefined }, call);
    return typeof rendered?.["prompt"] === "string" ? this.#tokenize(rendered["prompt"], call) : null;
  }

  async #tokenize(content: string, call: Call): Promise<number | null> {
    const asked = { model: this.limits.model, content, add_special: true, parse_special: true };
    const told = await this.#lookedUp("/tokenize", asked, call);
    return Array.isArray(told?.["tokens"]) ? told["tokens"].length : null;
  }

  async #retrying<T>(call: Call, attempt: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries += 1) {
      try {
        return await attempt();
      } catch (error) {
        call.endTry();
        if (!(error instanceof Again)) throw error;
        const waitMs = waitBefore(this.limits.retries, tries, error.retryAfterMs, call.leftMs, Math.random());
        if (waitMs === null) {
          error.error.tries = tries;
          throw error.error;
        }
        await call.sleep(waitMs);
      }
    }
  }

  async #send(path: string, body: Body, call: Call, phase: Phase, ms: number): Promise<Exchange> {
    const signal = call.beginTry();
    call.arm(phase, ms);
    const request = { method: "POST", headers: this.#headers, body: JSON.stringify(body), signal, redirect: "manual" };
    let response: Response;
    try {
      response = await call.race(this.#fetch(this.#root + path, request as RequestInit));
    } catch (error) {
      throw call.failure(error, phase, ms, false);
    }
    const exchange = new Exchange(response, call);
    if (response.status === 200) return exchange;
    throw await refusal(response, exchange, call);
  }
}

/** Nothing of an answer came: the request may be sent again. `error` is thrown when it is not. */
class Again extends Error {
  readonly error: Busy | Unreachable;
  readonly retryAfterMs: number | null;
  constructor(error: Busy | Unreachable, retryAfterMs: number | null = null) {
    super(error.message);
    this.error = error;
    this.retryAfterMs = retryAfterMs;
  }
}

/** An answer's pieces, to be read once. Nothing is sent before the first is asked for. */
export class Stream implements AsyncIterable<Piece> {
  readonly #options: Options;
  readonly #limits: Limits;
  readonly #open: (call: Call) => Promise<Exchange>;
  readonly #stop = new AbortController();
  #read = false;

  constructor(options: Options, limits: Limits, open: (call: Call) => Promise<Exchange>) {
    this.#options = options;
    this.#limits = limits;
    this.#open = open;
  }

  /** Ends the answer: its connection is closed, the server stops generating, and the place is free again. */
  abort(): void {
    this.#stop.abort();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void, undefined> {
    if (this.#read) throw new TypeError("a stream is read once");
    this.#read = true;
    const { totalMs, betweenTokensMs } = this.#limits.timeouts;
    const call = new Call(this.#options.timeoutMs ?? totalMs, this.#options.signal, this.#stop.signal);
    const texts: string[] = [];
    try {
      const exchange = await this.#open(call);
      for (;;) {
        const event = await exchange.event(betweenTokensMs);
        if (event === null) throw new Interrupted("the stream ended without [DONE]");
        const piece = pieceOf(event);
        if (piece === null) return;
        texts.push(piece.text);
        yield piece;
      }
    } catch (error) {
      if (error instanceof ClientError) error.partial = texts.join("");
      throw error;
    } finally {
      call.end();
    }
  }
}

/** A call: its total time, who may end it, and the try that runs. */
class Call {
  readonly #ends: number;
  readonly #totalMs: number;
  readonly #over = new AbortController();
  readonly #atEnd: (() => void)[] = [];
  readonly #total: ReturnType<typeof setTimeout>;
  #try: AbortController | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #armedMs = 0;

  constructor(totalMs: number, ...signals: (AbortSignal | undefined)[]) {
    this.#totalMs = totalMs;
    this.#ends = performance.now() + totalMs;
    this.#total = later(totalMs, () => this.#over.abort(new TimedOut("total", this.#totalMs)));
    for (const signal of signals) {
      if (signal === undefined) continue;
      const stop = (): void => this.#over.abort(new Aborted("ended by the caller", { cause: signal.reason }));
      if (signal.aborted) stop();
      else {
        signal.addEventListener("abort", stop, { once: true });
        this.#atEnd.push(() => signal.removeEventListener("abort", stop));
      }
    }
  }

  get leftMs(): number {
    return this.#ends - performance.now();
  }

  onEnd(work: () => void): void {
    this.#atEnd.push(work);
  }

  beginTry(): AbortSignal {
    this.endTry();
    const current = new AbortController();
    this.#try = current;
    if (this.#over.signal.aborted) current.abort(this.#over.signal.reason);
    else {
      const stop = (): void => current.abort(this.#over.signal.reason);
      this.#over.signal.addEventListener("abort", stop, { once: true });
      current.signal.addEventListener("abort", () => this.#over.signal.removeEventListener("abort", stop));
    }
    return current.signal;
  }

  /** From now on the phase may take so long. */
  arm(phase: Phase, ms: number): void {
    clearTimeout(this.#timer);
    this.#armedMs = ms;
    const current = this.#try;
    if (current !== null) this.#timer = later(ms, () => current.abort(new TimedOut(phase, this.#armedMs)));
  }

  /** The work's result, or the reason for which the try ends before. */
  race<T>(work: Promise<T>): Promise<T> {
    return raced(work, this.#try?.signal ?? this.#over.signal);
  }

  async sleep(ms: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const rest = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
    await raced(rest, this.#over.signal).finally(() => clearTimeout(timer));
  }

  /** Waits for something that `give` may take back. */
  wait<T>(work: Promise<T>): Promise<T> {
    return raced(work, this.#over.signal);
  }

  /** What a failed fetch or read means; before anything of an answer came, a lost connection may be tried again. */
  failure(error: unknown, phase: Phase, ms: number, began: boolean): unknown {
    if (error instanceof ClientError) return error;
    const code = codeOf(error);
    if (code === "UND_ERR_HEADERS_TIMEOUT" || code === "UND_ERR_BODY_TIMEOUT") return new TimedOut(phase, ms);
    const why = whyOf(error);
    if (code.startsWith("HPE_") || code.startsWith("UND_ERR_HEADERS")) {
      return new BadAnswer(`the answer is no HTTP: ${why}`, { cause: error });
    }
    if (began) return new Interrupted(`the connection ended within the answer: ${why}`, { cause: error });
    const lost = new Unreachable(why, { cause: error });
    return code === "" || LOST.test(code) ? new Again(lost) : lost;
  }

  /** Closes the try's connection: the server sees it and stops what it does for it. */
  endTry(): void {
    clearTimeout(this.#timer);
    this.#try?.abort(new Aborted("ended"));
    this.#try = null;
  }

  end(): void {
    clearTimeout(this.#total);
    this.endTry();
    for (const work of this.#atEnd.splice(0)) work();
  }
}

/** A response and its events as they come. */
class Exchange {
  readonly contentType: string;
  readonly #call: Call;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  readonly #parser = new SseParser();
  readonly #events: SseEvent[] = [];
  #began = false;

  constructor(response: Response, call: Call) {
    this.contentType = (response.headers.get("content-type") ?? "").split(";", 1)[0]!.trim().toLowerCase();
    this.#reader = response.body?.getReader();
    this.#call = call;
  }

  /** Whether there is a first event. */
  async first(ms: number): Promise<boolean> {
    while (this.#events.length === 0) if (!(await this.#read("first token", ms))) return false;
    return true;
  }

  /** The end before the first event. Node takes a reset for a proper end where the server closes after each answer. */
  endedEarly(): unknown {
    const why = "the stream ended before its first event";
    return this.#began ? new Interrupted(why) : new Again(new Unreachable(why));
  }

  /** The next event, null where the connection ended properly. */
  async event(ms: number): Promise<SseEvent | null> {
    if (this.#events.length === 0) this.#call.arm("between tokens", ms);
    while (this.#events.length === 0) if (!(await this.#read("between tokens", ms))) return null;
    return this.#events.shift() ?? null;
  }

  /** The whole body. */
  async rest(phase: Phase, ms: number): Promise<Uint8Array> {
    const pieces: Uint8Array[] = [];
    let size = 0;
    for (let piece = await this.#piece(phase, ms); piece !== null; piece = await this.#piece(phase, ms)) {
      this.#began = true;
      size += piece.length;
      if (size > MAX_BODY) throw new BadAnswer(`the answer is longer than ${MAX_BODY} bytes`);
      pieces.push(piece);
    }
    const all = new Uint8Array(size);
    let at = 0;
    for (const piece of pieces) {
      all.set(piece, at);
      at += piece.length;
    }
    return all;
  }

  async #read(phase: Phase, ms: number): Promise<boolean> {
    const piece = await this.#piece(phase, ms);
    if (piece === null) return false;
    this.#events.push(...this.#parser.feed(piece));
    this.#began ||= this.#events.length > 0 || !this.#parser.idle;
    return true;
  }

  async #piece(phase: Phase, ms: number): Promise<Uint8Array | null> {
    if (this.#reader === undefined) return null;
    try {
      const { done, value } = await this.#call.race(this.#reader.read());
      return done ? null : value;
    } catch (error) {
      throw this.#call.failure(error, phase, ms, this.#began);
    }
  }
}

/** Places for requests, given in the order they are asked for. */
class Places {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(slots: number) {
    this.#free = slots;
  }

  /** Waits for a place and returns what gives it back. */
  async enter(call: Call): Promise<() => void> {
    if (this.#free > 0) this.#free -= 1;
    else {
      let mine: (() => void) | undefined;
      const turn = new Promise<void>((resolve) => this.#waiting.push((mine = resolve)));
      try {
        await call.wait(turn);
      } catch (error) {
        const at = this.#waiting.indexOf(mine!);
        if (at >= 0) this.#waiting.splice(at, 1);
        else this.#leave(); // the place came in the same moment
        throw error;
      }
    }
    let left = false;
    return () => {
      if (!left) this.#leave();
      left = true;
    };
  }

  #leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free += 1;
    else next();
  }
}

// ---- pure parts

async function whole(stream: Stream): Promise<Answer> {
  const texts: string[] = [];
  const reasoning: string[] = [];
  const calls = new Map<number, ToolCall>();
  let finishReason: string | null = null;
  let usage: Usage | null = null;
  for await (const piece of stream) {
    texts.push(piece.text);
    reasoning.push(piece.reasoning);
    for (const call of piece.toolCalls) {
      const old = calls.get(call.index) ?? { index: call.index, id: "", name: "", arguments: "" };
      calls.set(call.index, {
        index: call.index,
        id: old.id || call.id,
        name: old.name + call.name,
        arguments: old.arguments + call.arguments,
      });
    }
    finishReason = piece.finishReason ?? finishReason;
    usage = piece.usage ?? usage;
  }
  const toolCalls = [...calls.values()].sort((one, other) => one.index - other.index);
  return { text: texts.join(""), reasoning: reasoning.join(""), toolCalls, finishReason, usage };
}

/** The body of a generation, but for max_tokens. */
function bodyOf(limits: Limits, content: Body, options: Options): Body {
  const { signal: _signal, timeoutMs: _timeoutMs, extra, max_tokens: _max, ...given } = options;
  const taken = Object.keys(extra ?? {}).filter((name) => NEVER.includes(name));
  if (taken.length > 0) throw new TypeError(`extra may not set ${taken.join(", ")}`);
  const streamed = { stream: true, stream_options: { include_usage: true } };
  return { model: limits.model, ...content, ...given, ...extra, ...streamed };
}

/** The max_tokens to send; `promptTokens` is null where the server does not count: then it must refuse by itself. */
export function answerTokens(limits: Limits, asked: number | undefined, promptTokens: number | null): number {
  if (asked !== undefined && !(Number.isInteger(asked) && asked >= 1)) {
    throw new RangeError("max_tokens must be a whole number of at least 1");
  }
  if (asked !== undefined && asked > limits.maxTokens) throw new AnswerTooLong(asked, limits.maxTokens);
  const room = limits.nCtx - (promptTokens ?? 0);
  if (room < (asked ?? 1)) throw new ContextExceeded(promptTokens, asked ?? null, limits.nCtx);
  return asked ?? Math.min(limits.maxTokens, room);
}

/** Milliseconds before the next try, null where there is to be none. Full jitter: anything up to base × 2^(tries − 1),
 * at most cap; after what the server asked for, where it did. `share` is a random number of [0, 1). */
export function waitBefore(
  retries: Retries,
  tries: number,
  retryAfterMs: number | null,
  leftMs: number,
  share: number,
): number | null {
  if (tries >= retries.tries) return null;
  if (retryAfterMs !== null && retryAfterMs > retries.longestRetryAfterMs) return null;
  const wait = (retryAfterMs ?? 0) + share * Math.min(retries.capMs, retries.baseMs * 2 ** (tries - 1));
  return wait < leftMs ? wait : null;
}

/** Milliseconds of a Retry-After: seconds, or a date. */
export function retryAfter(header: string | null, now = Date.now()): number | null {
  const text = (header ?? "").trim();
  if (/^\d+$/.test(text)) return Number(text) * 1000;
  const at = /[a-z]/i.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(at) ? null : Math.max(0, at - now);
}

async function refusal(response: Response, exchange: Exchange, call: Call): Promise<unknown> {
  let error: Body = {};
  call.arm("first token", REFUSAL_MS);
  try {
    const told = objectOf(await exchange.rest("first token", REFUSAL_MS), "the refusal");
    error = isObject(told["error"]) ? told["error"] : told;
  } catch (failed) {
    if (failed instanceof Aborted || (failed instanceof TimedOut && failed.phase === "total")) return failed;
    // its status says enough
  }
  const [status, code, message] = [response.status, wordOf(error), messageOf(error)];
  if (status === 429 || status === 503) {
    const afterMs = retryAfter(response.headers.get("retry-after"));
    return new Again(new Busy(status, code, message, afterMs), afterMs);
  }
  return tooLong(error) ?? new (status >= 500 ? ServerFailed : RequestRefused)(status, code, message);
}

/** The piece an event carries, null for the end of the stream. */
function pieceOf(event: SseEvent): Piece | null {
  if (event.data === "[DONE]") return null;
  const told = objectOf(event.data, "an event");
  if (event.name === "error" || "error" in told) {
    const error = isObject(told["error"]) ? told["error"] : "error" in told ? { message: told["error"] } : told;
    throw tooLong(error) ?? new StreamFailed(wordOf(error), messageOf(error));
  }
  const choices = told["choices"] ?? [];
  if (!Array.isArray(choices)) throw new BadAnswer("an event is no chunk of a completion");
  const choice: Body = isObject(choices[0]) ? choices[0] : {};
  const delta: Body = isObject(choice["delta"]) ? choice["delta"] : {};
  const calls = delta["tool_calls"] ?? [];
  if (!Array.isArray(calls)) throw new BadAnswer("an event is no chunk of a completion");
  return {
    text: textOf(choice["text"]) || textOf(delta["content"]),
    reasoning: textOf(delta["reasoning_content"]),
    toolCalls: calls.map(toolCall),
    finishReason: typeof choice["finish_reason"] === "string" ? choice["finish_reason"] : null,
    usage: usageOf(told["usage"]),
    raw: told,
  };
}

function toolCall(told: unknown): ToolCall {
  if (!isObject(told) || typeof told["index"] !== "number") throw new BadAnswer("an event holds no whole tool call");
  const made: Body = isObject(told["function"]) ? told["function"] : {};
  return {
    index: told["index"],
    id: textOf(told["id"]),
    name: textOf(made["name"]),
    arguments: textOf(made["arguments"]),
  };
}

function usageOf(told: unknown): Usage | null {
  if (!isObject(told) || typeof told["prompt_tokens"] !== "number") return null;
  const completion = told["completion_tokens"];
  return { promptTokens: told["prompt_tokens"], completionTokens: typeof completion === "number" ? completion : 0 };
}

function vectors(told: Body, count: number): number[][] {
  const rows = told["data"];
  if (!Array.isArray(rows) || rows.length !== count) throw new BadAnswer("the answer holds other vectors");
  const found: number[][] = [];
  for (const row of rows) {
    if (!isObject(row) || typeof row["index"] !== "number" || !Array.isArray(row["embedding"])) {
      throw new BadAnswer("the answer holds no embeddings");
    }
    found[row["index"]] = row["embedding"].map(Number);
  }
  return found;
}

function objectOf(raw: Uint8Array | string, what: string): Body {
  try {
    const text = typeof raw === "string" ? raw : new TextDecoder("utf-8", { fatal: true }).decode(raw);
    const told: unknown = JSON.parse(text);
    if (isObject(told)) return told;
  } catch (error) {
    throw new BadAnswer(`${what} is no JSON`, { cause: error });
  }
  throw new BadAnswer(`${what} is no JSON object`);
}

function isObject(told: unknown): told is Body {
  return typeof told === "object" && told !== null && !Array.isArray(told);
}

function textOf(told: unknown): string {
  return typeof told === "string" ? told : "";
}

/** Its own word for what is wrong: the code, or where that is a number the type. */
function wordOf(error: Body): string | null {
  return textOf(error["code"]) || textOf(error["type"]) || null;
}

function messageOf(error: Body): string {
  return textOf(error["message"]) || "the server says no more";
}

function tooLong(error: Body): ContextExceeded | null {
  if (![error["code"], error["type"]].some((word) => TOO_LONG.includes(textOf(word)))) return null;
  const [prompt, context] = [error["n_prompt_tokens"], error["n_ctx"]];
  return new ContextExceeded(
    typeof prompt === "number" ? prompt : null,
    null,
    typeof context === "number" ? context : null,
  );
}

/** The platform's word for why a fetch failed: Node has one, browsers say nothing. */
function codeOf(error: unknown): string {
  const cause: unknown = error instanceof Error ? error.cause : undefined;
  return isObject(cause) || cause instanceof Error ? textOf((cause as Body)["code"]) : "";
}

/** What a failed fetch says, with the cause where the platform gives one. */
function whyOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = codeOf(error);
  const cause = error.cause instanceof Error ? error.cause.message : "";
  return [error.message, cause, code].filter((part, at, all) => part !== "" && all.indexOf(part) === at).join(": ");
}

/** A timer; waits longer than a platform can count are as long as it can. */
function later(ms: number, work: () => void): ReturnType<typeof setTimeout> {
  return setTimeout(work, Math.min(ms, 2 ** 31 - 1));
}

function raced<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  work.catch(() => {}); // when the signal wins, nobody else looks at it
  return new Promise<T>((resolve, reject) => {
    const stop = (): void => reject(signal.reason);
    if (signal.aborted) {
      stop();
      return;
    }
    signal.addEventListener("abort", stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

/** The server's root of an address that may end in /v1. */
function rootOf(url: string): string {
  const parsed = new URL(url);
  if (!["http:", "https:"].includes(parsed.protocol) || parsed.username !== "" || parsed.password !== "") {
    throw new TypeError("the base URL is http:// or https:// and a host, without a name or a password");
  }
  return url.replace(/\/+$/, "").replace(/\/v1$/, "");
}
