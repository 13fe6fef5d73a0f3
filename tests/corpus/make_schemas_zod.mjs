// Writes schemas_zod.json: what zod 4's toJSONSchema and zod-to-json-schema make of types that people ask models for.
// npm install zod@4 zod3@npm:zod@3 zod-to-json-schema@3 && node tests/corpus/make_schemas_zod.mjs
import { createRequire } from "node:module";
import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.cwd()}/`));
const z4 = require("zod");
const { z: z3 } = require("zod3");
const { zodToJsonSchema } = require("zod-to-json-schema");
const version = (name) => require(`${process.cwd()}/node_modules/${name}/package.json`).version;

const types = (z) => {
  const person = z.object({ name: z.string().min(1).max(40), age: z.number().int().min(0).max(150), email: z.string().email() });
  const node = z.lazy(() => z.object({ value: z.string(), children: z.array(node) }));
  const linked = z.lazy(() => z.object({ value: z.number(), next: linked.nullable() }));
  const cat = z.object({ kind: z.literal("cat"), meows: z.number() });
  const dog = z.object({ kind: z.literal("dog"), barks: z.boolean().optional() });
  return {
    string: z.string(),
    "string of a length": z.string().min(2).max(5),
    "string of exactly": z.string().length(3),
    nonempty: z.string().nonempty(),
    email: z.string().email(),
    url: z.string().url(),
    uuid: z.string().uuid(),
    cuid: z.string().cuid(),
    cuid2: z.string().cuid2(),
    ulid: z.string().ulid(),
    nanoid: z.string().nanoid(),
    base64: z.string().base64(),
    emoji: z.string().emoji(),
    datetime: z.string().datetime(),
    "datetime with offset": z.string().datetime({ offset: true }),
    date: z.string().date(),
    time: z.string().time(),
    duration: z.string().duration(),
    startsWith: z.string().startsWith("https://"),
    endsWith: z.string().endsWith(".com"),
    includes: z.string().includes("@"),
    regex: z.string().regex(/^[A-Z]{3}-\d{4}$/),
    "trim and lower case": z.string().trim().toLowerCase(),
    number: z.number(),
    int: z.number().int(),
    positive: z.number().positive(),
    "non-negative int": z.number().int().nonnegative(),
    "between 0 and 1": z.number().min(0).max(1),
    multipleOf: z.number().multipleOf(0.5),
    finite: z.number().finite(),
    safe: z.number().safe(),
    boolean: z.boolean(),
    null: z.null(),
    any: z.any(),
    unknown: z.unknown(),
    never: z.never(),
    "object with never": z.object({ a: z.string(), b: z.never().optional() }),
    literal: z.literal("yes"),
    "literal number": z.literal(42),
    enum: z.enum(["red", "grün", "blue"]),
    nativeEnum: z.nativeEnum({ Low: 1, High: 2 }),
    array: z.array(z.string()),
    "array of a length": z.array(z.number()).min(1).max(3),
    "array nonempty": z.array(z.boolean()).nonempty(),
    tuple: z.tuple([z.string(), z.number()]),
    "tuple with rest": z.tuple([z.string()]).rest(z.number()),
    person,
    strict: person.strict(),
    passthrough: person.passthrough(),
    catchall: z.object({ a: z.string() }).catchall(z.number()),
    partial: person.partial(),
    pick: person.pick({ name: true }),
    extend: person.extend({ admin: z.boolean().default(false) }),
    empty: z.object({}),
    optional: z.object({ a: z.string().optional(), b: z.number().nullable() }),
    nullable: z.string().nullable(),
    nullish: z.object({ a: z.string().nullish() }),
    default: z.object({ a: z.number().default(3) }),
    describe: z.object({ a: z.string().describe("the first") }).describe("an object"),
    union: z.union([z.string(), z.number(), z.array(z.boolean())]),
    "union of objects": z.union([cat, dog]),
    "discriminated union": z.discriminatedUnion("kind", [cat, dog]),
    intersection: z.intersection(z.object({ a: z.string() }), z.object({ b: z.number() })),
    record: z.record(z.string(), z.number()),
    "record of enum": z.record(z.enum(["a", "b"]), z.number()),
    "record of patterned keys": z.record(z.string().regex(/^[a-z]+$/), z.string()),
    "record of long keys": z.record(z.string().min(2), z.boolean()),
    "record of records": z.record(z.string(), z.record(z.string(), z.array(z.string()))),
    readonly: z.array(z.string()).readonly(),
    brand: z.string().brand("Id"),
    catch: z.number().catch(0),
    pipe: z.string().pipe(z.string().min(2)),
    coerce: z.coerce.number(),
    "recursive node": node,
    "recursive list": linked,
    recipe: z.object({
      title: z.string(),
      servings: z.number().int().positive(),
      ingredients: z.array(z.object({ name: z.string(), amount: z.string(), optional: z.boolean().default(false) })),
      steps: z.array(z.string()).min(1),
      tags: z.array(z.enum(["vegan", "quick", "spicy"])).max(3).optional(),
    }),
  };
};

const onlyZod3 = (z) => ({
  set: z.set(z.string()),
  map: z.map(z.string(), z.number()),
  bigint: z.bigint(),
  date: z.date(),
  "dates as strings": z.object({ born: z.date() }),
  promise: z.promise(z.string()),
  ip: z.string().ip(),
  jwt: z.string().jwt(),
});

const onlyZod4 = (z) => {
  const person = z.object({ name: z.string(), get friends() { return z.array(person); } });
  const tree = z.object({ v: z.string(), get left() { return tree.optional(); }, get right() { return tree.optional(); } });
  return {
    "top-level email": z.email(),
    uuidv4: z.uuidv4(),
    guid: z.guid(),
    ipv4: z.ipv4(),
    ipv6: z.ipv6(),
    cidrv4: z.cidrv4(),
    cidrv6: z.cidrv6(),
    e164: z.e164(),
    base64url: z.base64url(),
    "top-level jwt": z.jwt(),
    ksuid: z.ksuid(),
    xid: z.xid(),
    hostname: z.hostname(),
    httpUrl: z.httpUrl(),
    hex: z.hex(),
    "iso date": z.iso.date(),
    "iso datetime": z.iso.datetime({ offset: true, precision: 3 }),
    "z.int": z.int(),
    int32: z.int32(),
    uint32: z.uint32(),
    float32: z.float32(),
    float64: z.float64(),
    json: z.json(),
    templateLiteral: z.templateLiteral(["v", z.number(), ".", z.enum(["a", "b"])]),
    partialRecord: z.partialRecord(z.enum(["a", "b"]), z.number()),
    looseRecord: z.looseRecord(z.string().regex(/^S_/), z.number()),
    strictObject: z.strictObject({ a: z.string() }),
    looseObject: z.looseObject({ a: z.string() }),
    "recursive getters": person,
    "recursive tree": tree,
    "literals of many": z.literal(["a", 1, true, null]),
    stringbool: z.stringbool(),
    file: z.file(),
    xor: z.xor([z.string(), z.number()]),
    "xor of objects": z.xor([z.object({ a: z.string() }), z.object({ b: z.string() })]),
    meta: z.object({ a: z.string().meta({ title: "A", examples: ["x"], deprecated: true }) }).meta({ id: "Thing" }),
  };
};

const schemas = {};
const seen = new Set();
const add = (name, make) => {
  let schema;
  try {
    schema = JSON.parse(JSON.stringify(make()));
  } catch (error) {
    console.error(`${name}: ${error.message}`);
    return;
  }
  const text = JSON.stringify(schema);
  if (!seen.has(text)) schemas[name] = schema;
  seen.add(text);
};

for (const [name, type] of Object.entries({ ...types(z4), ...onlyZod4(z4) })) {
  add(`zod 4: ${name}`, () => z4.toJSONSchema(type));
  add(`zod 4, input: ${name}`, () => z4.toJSONSchema(type, { io: "input" }));
  add(`zod 4, draft 7: ${name}`, () => z4.toJSONSchema(type, { target: "draft-7", reused: "ref", unrepresentable: "any" }));
}
for (const [name, type] of Object.entries({ ...types(z3), ...onlyZod3(z3) })) {
  add(`zod 3: ${name}`, () => zodToJsonSchema(type));
  add(`zod 3, named: ${name}`, () => zodToJsonSchema(type, { name: "Answer", target: "openAi" }));
}

const madeBy = `zod ${version("zod")}, zod ${version("zod3")} with zod-to-json-schema ${version("zod-to-json-schema")}`;
writeFileSync(new URL("schemas_zod.json", import.meta.url), `${JSON.stringify({ made_by: madeBy, schemas }, null, 1)}\n`);
console.log(`${Object.keys(schemas).length} schemas by ${madeBy}`);
