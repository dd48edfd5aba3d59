// JSON that people paste: tools, schemas, messages.

/** `text` as JSON. Throws SyntaxError with words that name the field. */
export function parseJson(text, name) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`The ${name} cannot be read as JSON: ${error.message}`);
  }
}

/** Tools as OpenAI has them, or bare functions, which are wrapped. */
export function parseTools(text) {
  if (!text.trim()) return undefined;
  const value = parseJson(text, "tools");
  const tools = Array.isArray(value) ? value : [value];
  return tools.map((tool) => (tool?.type === "function" ? tool : { type: "function", function: tool }));
}

/** What asks for JSON that fits a schema. */
export function parseSchema(text) {
  if (!text.trim()) return undefined;
  return { type: "json_schema", json_schema: { name: "answer", schema: parseJson(text, "schema") } };
}

/** Arguments of a call, indented if they are JSON by now. */
export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
