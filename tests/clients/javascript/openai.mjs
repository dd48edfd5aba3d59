// The `openai` package: node openai.mjs BASE_URL. What it heard is printed as JSON.
import assert from "node:assert/strict";

const baseURL = process.argv[2];

// docs: javascript openai
import OpenAI from "openai";

const client = new OpenAI({ baseURL, apiKey: "none" });
const answer = await client.chat.completions.create({
  model: "demo.gguf",
  messages: [{ role: "user", content: "who are you?" }],
  temperature: 0,
});
console.log(answer.choices[0].message.content);

const stream = await client.chat.completions.create({
  model: "demo.gguf",
  messages: [{ role: "user", content: "Where do I put my models?" }],
  temperature: 0,
  stream: true,
});
let streamed = "";
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
console.log(streamed);
// end

assert.match(answer.choices[0].message.content, /demo model/);
assert.match(streamed, /models\//);

const response = client.responses.stream({
  model: "demo.gguf",
  input: "Where do I put my models?",
  temperature: 0,
});
assert.match((await response.finalResponse()).output_text, /models\//);

const minutesSet = [];
const runner = client.chat.completions.runTools({
  model: "demo.gguf",
  messages: [{ role: "user", content: "please set a timer for 12 minutes" }],
  temperature: 0,
  stream: true,
  tools: [
    {
      type: "function",
      function: {
        name: "set_timer",
        description: "Start a timer",
        parameters: {
          type: "object",
          properties: { minutes: { type: "integer" } },
          required: ["minutes"],
        },
        parse: JSON.parse,
        function: ({ minutes }) => {
          minutesSet.push(minutes);
          return '{"status": "started"}';
        },
      },
    },
  ],
});
assert.ok(await runner.finalContent());
assert.deepEqual(minutesSet, [12]);

// docs: javascript openai embeddings
const { data } = await client.embeddings.create({
  model: "bert.gguf",
  input: ["the time", "a long day", "the time"],
});
const [one, other, again] = data.map(({ embedding }) => embedding);
// end

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
assert.ok(dot(one, again) > 0.9999 && dot(one, other) < 0.9999);
const plain = await client.embeddings.create({
  model: "bert.gguf",
  input: "the time",
  encoding_format: "float",
});
assert.ok(dot(plain.data[0].embedding, one) > 0.9999);

await assert.rejects(
  client.chat.completions.create({ model: "nope", messages: [{ role: "user", content: "x" }] }),
  { status: 404, code: "model_not_found" },
);
