// Lint: what the compiler cannot see and a reviewer would have to. Style itself is Prettier's.
import js from "@eslint/js";
import typescript from "typescript-eslint";

const NO_AMBIENT_TIME = "Time arrives as an argument here";
const NO_AMBIENT_RANDOM = "Randomness arrives as an argument here";

export default typescript.config(
  { ignores: ["dist/", ".tmp/", ".leeward/", "test/golden/", "console/dist/"] },
  js.configs.recommended,
  {
    files: ["**/*.ts"],
    extends: [typescript.configs.recommended],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "@typescript-eslint/no-floating-promises": [
        "error",
        {
          allowForKnownSafeCalls: [
            { from: "package", package: "node:test", name: ["test", "it", "describe", "suite"] },
          ],
        },
      ],
      "@typescript-eslint/no-misused-promises": "error",
      "@typescript-eslint/return-await": ["error", "error-handling-correctness-only"],
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
      "@typescript-eslint/only-throw-error": ["error", { allowThrowingUnknown: true }],
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "no-undef": "off", // The compiler's work.
    },
  },
  {
    files: ["src/model/**/*.ts", "src/workflows/**/*.ts"],
    rules: {
      "no-restricted-syntax": [
        "error",
        { selector: "CallExpression[callee.object.name='Date'][callee.property.name='now']", message: NO_AMBIENT_TIME },
        { selector: "NewExpression[callee.name='Date'][arguments.length=0]", message: NO_AMBIENT_TIME },
        {
          selector: "CallExpression[callee.object.name='Math'][callee.property.name='random']",
          message: NO_AMBIENT_RANDOM,
        },
        { selector: "TSEnumDeclaration", message: "A union of strings, or an `as const` table" },
      ],
    },
  },
  {
    files: ["**/*.js", "**/*.mjs"],
    languageOptions: {
      globals: {
        process: "readonly",
        console: "readonly",
        URL: "readonly",
        fetch: "readonly",
        setTimeout: "readonly",
        setInterval: "readonly",
        clearInterval: "readonly",
      },
    },
  },
);
