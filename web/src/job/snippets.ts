/** How to use a result: a few lines to take away, with this job's own names in them. */
import { addressOf, type Job, type Schemas } from "$lib/api";
import { modelOf } from "../jobs/describe";

type Calibrated = Schemas["CalibrationResult"];

/** Lines to take away, made here; or the words of a tool, which the API gives. */
export type Snippet = { name: string } & ({ text: string } | { format: Tool["format"] });

interface Tool {
  name: string;
  format: "trl" | "axolotl" | "llama-factory" | "ms-swift" | "unsloth" | "vllm";
}

/** They train language models, and nothing else as exported. */
const TRAINERS: Tool[] = [
  { name: "TRL", format: "trl" },
  { name: "Axolotl", format: "axolotl" },
  { name: "LLaMA-Factory", format: "llama-factory" },
  { name: "ms-swift", format: "ms-swift" },
  { name: "Unsloth", format: "unsloth" },
];
const SERVER: Tool = { name: "vLLM", format: "vllm" };

const TASKS: Record<string, string> = {
  SEQ_CLS: "a classifier or a regression",
  SEQ_2_SEQ_LM: "an encoder with a decoder",
};

const AUTO: Record<string, string> = {
  SEQ_CLS: "AutoModelForSequenceClassification",
  CAUSAL_LM: "AutoModelForCausalLM",
  SEQ_2_SEQ_LM: "AutoModelForSeq2SeqLM",
};

/** The class that was measured: names and head are its. */
function classOf({ adapter_config, rank_map }: Calibrated): string {
  const { model_class } = rank_map.provenance as { model_class?: unknown };
  if (typeof model_class === "string" && model_class) return model_class;
  return AUTO[String(adapter_config.task_type)] ?? "AutoModel";
}

/** A new head has as many outputs as there are classes; a number has one. */
function headOf({ adapter_config, rank_map }: Calibrated): string {
  if (adapter_config.task_type !== "SEQ_CLS") return "";
  const { task, classes } = rank_map.provenance as { task?: unknown; classes?: unknown };
  const outputs = task === "regression" ? 1 : classes;
  return typeof outputs === "number" ? `, num_labels=${outputs}` : "";
}

/** Whether the head reads the last token before padding, as those of decoders do. */
function readsLastToken({ adapter_config }: Calibrated): boolean {
  const whole = adapter_config.modules_to_save;
  const names = Array.isArray(whole) ? whole.map(String) : [];
  return adapter_config.task_type === "SEQ_CLS" && names.some((name) => name.split(".").at(-1) === "score");
}

/** Such a head must know which token is padding; this is how it was calibrated. */
const PADDING = [
  `if tokenizer.pad_token is None:  # as it was calibrated`,
  `    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token`,
  `tokenizer.padding_side = "right"`,
  `base.config.pad_token_id = tokenizer.pad_token_id  # the head reads the last token before it`,
];

/** Which trainers are left out, and why; empty where none is. */
export function leftOut(result: Calibrated): string {
  const kind = TASKS[String(result.adapter_config.task_type)];
  if (!kind) return "";
  const names = TRAINERS.map(({ name }) => name).join(", ");
  return `${names} train language models, and this plan is for ${kind}: take PEFT or the HF Trainer.`;
}

/** Loads the base: by the name that its adapters carry, or else one to fill in, as exports say it. */
function loadingOf(job: Job, result: Calibrated, loaded: string): string[] {
  const load = (name: string) => [
    `base = ${loaded}.from_pretrained(${name}${headOf(result)})`,
    ...(readsLastToken(result) ? [`tokenizer = AutoTokenizer.from_pretrained(${name})`, ...PADDING] : []),
  ];
  if (result.adapter_config.base_model_name_or_path) return load("config.base_model_name_or_path");
  const fillIn = `# put the hub id or path of the model that is ${JSON.stringify(modelOf(job))} here in place of BASE_MODEL`;
  return [fillIn, ...load('"BASE_MODEL"')];
}

export function snippetsOf(job: Job, result: Calibrated, hasKey: boolean): Snippet[] {
  const digest = result.digest;
  const url = addressOf("/").replace(/\/$/, "");
  const loaded = classOf(result);
  const hasWeights = result.artifacts.some(({ name }) => name === "adapter_model.safetensors");
  const key = hasKey ? ' -H "Authorization: Bearer $FIMLORA_API_KEY"' : "";
  const fetched = `fimlora --url ${url} fetch ${job.id} --output adapter`;
  const start = hasWeights ? "PeftModel" : "get_peft_model";
  const peft = [
    `# ${fetched}`,
    `from peft import LoraConfig, ${start}`,
    `from transformers import ${readsLastToken(result) ? "AutoTokenizer, " : ""}${loaded}`,
    ``,
    `config = LoraConfig.from_pretrained("adapter")`,
    ...loadingOf(job, result, loaded),
    hasWeights
      ? `model = PeftModel.from_pretrained(base, "adapter", is_trainable=True)  # its initial weights`
      : `model = get_peft_model(base, config)`,
    `model.print_trainable_parameters()`,
  ];
  const trainer = [
    ...peft.slice(0, -1),
    ``,
    `from fimlora import VerifyPlan`,
    `from transformers import Trainer, TrainingArguments`,
    ``,
    `trainer = Trainer(`,
    `    model=model,`,
    `    args=TrainingArguments(output_dir="run"),`,
    `    train_dataset=train_dataset,  # yours: tokens and labels`,
    ...(readsLastToken(result) ? [`    processing_class=tokenizer,  # pads`] : []),
    `    callbacks=[VerifyPlan("adapter")],  # stops before step 1 if ranks are not the plan's`,
    `)`,
    `trainer.train()`,
  ];
  const curl = [
    `curl -sSf${key} -o adapter_config.json \\`,
    `  ${url}/jobs/${job.id}/artifacts/adapter_config.json`,
  ];
  const ci = [
    `# Pin once, then fetch what the pin stands for: an unchanged pattern is not sent again.`,
    `export FIMLORA_URL=${url}`,
    `fimlora pin NAME prod ${job.id}`,
    `fimlora fetch --pin NAME:prod --format peft --output adapter_config.json`,
    ``,
    `# Or by content address, which never changes:`,
    `curl -sSf${key} --etag-save lora.etag --etag-compare lora.etag -o lora.json \\`,
    `  "${url}/rank-patterns/${digest}?format=peft"`,
  ];
  return [
    { name: "PEFT", text: peft.join("\n") },
    { name: "HF Trainer", text: trainer.join("\n") },
    ...(leftOut(result) ? [] : TRAINERS),
    SERVER,
    { name: "Command line", text: fetched },
    { name: "curl", text: curl.join("\n") },
    { name: "CI", text: ci.join("\n") },
  ];
}
