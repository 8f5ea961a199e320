import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { parse } from "yaml";
import type { CliDependencies } from "../../src/cli/context.ts";
import { createProgram } from "../../src/cli/program.ts";
import { parseAgentConfig } from "../../src/main/agent.ts";
import { readControlConfig } from "../../src/main/control.ts";
import { parseMasterTargetConfig } from "../../src/main/master-target.ts";
import { parseProcessServerConfig } from "../../src/main/process-server.ts";
import { parseWorkerConfig } from "../../src/main/worker.ts";
import { SEARCH_ATTRIBUTES } from "../../src/workflows/messages.ts";
import { controlConfig, enrolledRoles, PORT_NAMES, type Layout } from "../../src/embedded/layout.ts";

const root = path.join(import.meta.dirname, "..", "..");
const file = path.join(root, "docker-compose.yml");

interface Service {
  readonly image?: string;
  readonly command?: readonly string[];
  readonly entrypoint?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly networks?: readonly string[];
  readonly volumes?: readonly string[];
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly healthcheck?: object;
  readonly ports?: readonly string[];
  readonly configs?: readonly { readonly source: string; readonly target?: string }[];
  readonly restart?: string;
}

interface Compose {
  readonly services: Readonly<Record<string, Service>>;
  readonly volumes: Readonly<Record<string, unknown>>;
  readonly networks: Readonly<Record<string, unknown>>;
  readonly configs: Readonly<Record<string, { readonly content: string }>>;
}

const compose = parse(readFileSync(file, "utf8"), { merge: true }) as Compose;
const services = Object.entries(compose.services);

test("every image is pinned by a tag", () => {
  for (const [name, { image }] of services) assert.match(image ?? "", /^[a-z0-9./-]+:v?\d[\w.-]*$/, name);
});

test("what is referred to exists: files, volumes, networks, services, settings", () => {
  const settings = readFileSync(path.join(root, "config/compose/env.sample"), "utf8");
  for (const [, name] of readFileSync(file, "utf8").matchAll(/\$\{([A-Z0-9_]+)/g))
    assert.match(settings, new RegExp(`^${name}=`, "m"));
  for (const [name, service] of services) {
    for (const volume of service.volumes ?? []) {
      const source = volume.split(":", 1)[0] ?? "";
      if (source.startsWith("./")) assert.ok(existsSync(path.join(root, source)), `${name}: ${source}`);
      else if (!source.startsWith("$")) assert.ok(source in compose.volumes, `${name}: volume ${source}`);
    }
    for (const network of service.networks ?? ["default"])
      assert.ok(network in compose.networks, `${name}: network ${network}`);
    for (const { source } of service.configs ?? []) assert.ok(source in compose.configs, `${name}: config ${source}`);
    for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
      assert.ok(other in compose.services, `${name}: ${other}`);
      if (condition === "service_healthy")
        assert.ok(compose.services[other]?.healthcheck !== undefined, `${other} tells its health`);
    }
    for (const published of service.ports ?? [])
      assert.match(published, /^127\.0\.0\.1:/, `${name} is published on this host only`);
  }
  const setup = services.flatMap(([, one]) => one.entrypoint ?? []).filter((word) => word.startsWith("/temporal/"));
  assert.deepEqual(
    setup.filter((word) => !existsSync(path.join(root, word))),
    [],
  );
});

test("the primary site reaches neither Temporal nor the secondary's store, and has no credentials of it", () => {
  const networksOf = (name: string): readonly string[] => compose.services[name]?.networks ?? [];
  for (const [name, service] of services.filter(([one]) => one.startsWith("primary-"))) {
    for (const out of ["temporal", "postgresql", "secondary-s3", "secondary-redis"]) {
      assert.deepEqual(
        networksOf(name).filter((network) => networksOf(out).includes(network)),
        [],
        `${name} and ${out}`,
      );
    }
    const config = (service.volumes ?? [])
      .map((one) => one.split(":", 1)[0] ?? "")
      .filter((one) => one.endsWith(".json"));
    const text = [JSON.stringify(service), ...config.map((one) => readFileSync(path.join(root, one), "utf8"))].join(
      "\n",
    );
    assert.doesNotMatch(text, /temporal|SECONDARY_S3|secondary-s3/i, name);
  }
});

test("each role's configuration has what the embedded system gives that role", () => {
  const layout: Layout = {
    state: "/state",
    ports: Object.fromEntries(PORT_NAMES.map((name, index) => [name, 1024 + index])),
    tools: { temporal: "temporal", versitygw: "versitygw", redisServer: "redis-server" },
    leeward: ["leeward"],
  };
  const embedded = new Map<string, object>([["control", controlConfig(layout)]]);
  for (const role of enrolledRoles(layout))
    embedded.set(role.role === "worker" ? "worker" : `${role.site}-${role.role}`, role.config);
  for (const [name, service] of services.filter(([, one]) => one.command?.[1] === "--config")) {
    const config = JSON.parse(readFileSync(path.join(root, `config/compose/${name}.json`), "utf8")) as object;
    assert.ok(service.volumes?.includes(`./config/compose/${name}.json:/etc/leeward/config.json:ro`), name);
    const expected = embedded.get(name);
    assert.ok(expected !== undefined, name);
    assert.deepEqual(shape(config), shape(expected), name);
  }
});

test("our own program understands every role's command and configuration, and the typed commands find control", async () => {
  const readers: Readonly<Record<string, (file: string) => { readonly site: string; readonly name?: string }>> = {
    agent: parseAgentConfig,
    "process-server": parseProcessServerConfig,
    "master-target": parseMasterTargetConfig,
    worker: parseWorkerConfig,
    control: readControlConfig,
  };
  const ours = services.filter(
    ([, { image, entrypoint }]) => image?.startsWith("leeward/") && entrypoint === undefined,
  );
  assert.equal(ours.length, 7);
  const certified = new Map((compose.services["enrolment"]?.command ?? []).slice(2).map(splitRole));
  for (const [name, service] of ours) {
    const started: [string, string][] = [];
    const program = createProgram({
      version: "0.0.0",
      role: async (role: string, file: string) => void started.push([role, file]),
    } as unknown as CliDependencies);
    await program.parseAsync([...(service.command ?? [])], { from: "user" });
    const [[role = "", file = ""] = []] = started;
    assert.equal(file, "/etc/leeward/config.json", name);
    const config = readers[role]?.(path.join(root, "config/compose", `${name}.json`));
    assert.ok(config !== undefined, `${name}: "${role}" is a role`);
    assert.equal(config.site, name === "control" || name === "worker" ? "secondary" : name.split("-")[0], name);
    // What the role says it is, its certificate must say.
    if (role !== "control")
      assert.equal(certified.get(`${config.site}/${role}/${config.name ?? ""}`), `/roles/${name}/identity`, name);
    for (const mounted of filesIn(config)) {
      const isMade = mounted.startsWith("/var/lib/leeward/");
      const isConfig = service.configs?.some(({ target }) => target === mounted) === true;
      assert.ok(isMade || isConfig, `${name}: ${mounted}`);
    }
  }
  assert.deepEqual([...certified.keys()].length, ours.length - 1, "nobody else is enrolled");

  const { environment } = compose.services["control"]!;
  const control = readControlConfig(path.join(root, "config/compose/control.json"));
  assert.equal(environment?.["LEEWARD_API"], `http://127.0.0.1:${control.api.port}`);
  assert.equal(environment?.["LEEWARD_API_TOKEN_FILE"], `${control.stateDir}/api-token`);
});

test("what enrols the roles asks for what the API has", () => {
  const script = readFileSync(path.join(root, "docker/enrol.mjs"), "utf8");
  const routes = readFileSync(path.join(root, "src/api/routes.ts"), "utf8");
  const asked = [...script.matchAll(/\$\{apiUrl\}(\/v1\/[\w/-]+)/g)].map(([, one = ""]) => one);
  assert.deepEqual(
    asked.filter((one) => !routes.includes(`path: "${one}"`)),
    [],
  );
  assert.ok(asked.length > 0);
});

test("the Temporal server learns every search attribute that workflows set, within its limits", () => {
  const { searchAttributes } = JSON.parse(readFileSync(path.join(root, "temporal/search-attributes.json"), "utf8")) as {
    readonly searchAttributes: readonly { readonly name: string; readonly type: string }[];
  };
  assert.deepEqual(Object.fromEntries(searchAttributes.map((one) => [one.name, one.type])), { ...SEARCH_ATTRIBUTES });
  for (const type of new Set(searchAttributes.map((one) => one.type))) {
    assert.ok(searchAttributes.filter((one) => one.type === type).length <= (type === "Keyword" ? 10 : 3), type);
  }
});

test("the setup scripts read from the data files all that is in them", () => {
  const script = readFileSync(path.join(root, "temporal/setup/namespace.sh"), "utf8");
  const expressions = [...script.matchAll(/sed -n '([^']+)' "\$here\/([^"]+)"/g)];
  assert.equal(expressions.length, 2);
  for (const [, expression = "", data = ""] of expressions) {
    const { stdout } = spawnSync("sed", ["-n", expression, path.join(root, "temporal", data)], { encoding: "utf8" });
    const parsed = JSON.parse(readFileSync(path.join(root, "temporal", data), "utf8")) as Record<
      string,
      readonly { readonly name: string }[]
    >;
    const entries = Object.values(parsed).find((value) => Array.isArray(value)) ?? [];
    assert.deepEqual(
      stdout
        .trim()
        .split("\n")
        .map((line) => line.split(" ")[0]),
      entries.map((one) => one.name),
      data,
    );
  }
  for (const name of ["schema.sh", "namespace.sh"]) {
    assert.equal(spawnSync("sh", ["-n", path.join(root, "temporal/setup", name)]).status, 0, name);
  }
});

test("Docker's own checker accepts it", (context) => {
  if (spawnSync("docker", ["compose", "version"]).status !== 0) {
    context.skip("no `docker compose` on this machine");
    return;
  }
  const sample = path.join(root, "config/compose/env.sample");
  const { status, stderr } = spawnSync("docker", ["compose", "--env-file", sample, "-f", file, "config", "--quiet"], {
    encoding: "utf8",
  });
  assert.equal(status, 0, stderr);
});

/** Keys all the way down; values do not matter. */
function shape(value: unknown): unknown {
  if (Array.isArray(value)) return value.length === 0 ? [] : [shape(value[0])];
  if (typeof value !== "object" || value === null) return typeof value;
  return Object.fromEntries(
    Object.entries(value)
      .map(([key, inner]) => [key, shape(inner)])
      .sort(),
  );
}

function splitRole(text: string): [string, string] {
  const [identity = "", folder = ""] = text.split("=");
  return [identity, folder];
}

/** Every setting that names a file. */
function filesIn(value: unknown, key = ""): readonly string[] {
  if (typeof value === "string") return key.endsWith("File") ? [value] : [];
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([name, inner]) => filesIn(inner, name));
}
