// Vercel's AI SDK: node ai_sdk.mjs BASE_URL.
import assert from "node:assert/strict";

const baseURL = process.argv[2];

// docs: javascript ai sdk
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const local = createOpenAICompatible({
  name: "local",
  baseURL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = local("demo.gguf");

const { textStream } = streamText({ model, prompt: "who are you?", temperature: 0 });
for await (const text of textStream) process.stdout.write(text);

const timer = tool({
  description: "Start a timer",
  inputSchema: z.object({ minutes: z.number().int() }),
  execute: async ({ minutes }) => ({ status: "started", minutes }),
});
const { text, steps } = await generateText({
  model,
  prompt: "please set a timer for 12 minutes",
  tools: { set_timer: timer },
  stopWhen: stepCountIs(3),
  temperature: 0,
});
console.log(text);

const { output } = await generateText({
  model,
  prompt: "who are you?",
  output: Output.object({ schema: z.object({ name: z.string().max(20), tiny: z.boolean() }) }),
  temperature: 0,
});
console.log(output);
// end

// docs: javascript ai sdk embeddings
import { cosineSimilarity, embedMany } from "ai";

const { embeddings, usage } = await embedMany({
  model: local.embeddingModel("bert.gguf"),
  values: ["the time", "a long day", "the time"],
});
console.log(cosineSimilarity(embeddings[0], embeddings[1]));
// end

assert.ok(cosineSimilarity(embeddings[0], embeddings[2]) > 0.9999);
assert.ok(cosineSimilarity(embeddings[0], embeddings[1]) < 0.9999);
assert.ok(usage.tokens > 0);

assert.ok(text);
assert.deepEqual(
  steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName, call.input])),
  [["set_timer", { minutes: 12 }]],
);
assert.deepEqual(Object.keys(output).sort(), ["name", "tiny"]);

const streamed = streamText({ model, prompt: "Where do I put my models?", temperature: 0 });
assert.match(await streamed.text, /models\//);
assert.ok((await streamed.usage).inputTokens > 0);
assert.equal(await streamed.finishReason, "stop");
