/** How to use a result: a few lines to take away, with this job's own names in them. */
import { addressOf, type Job } from "$lib/api";
import { modelOf } from "../jobs/describe";

export interface Snippet {
  name: string;
  text: string;
}

const AUTO: Record<string, string> = {
  SEQ_CLS: "AutoModelForSequenceClassification",
  CAUSAL_LM: "AutoModelForCausalLM",
  SEQ_2_SEQ_LM: "AutoModelForSeq2SeqLM",
};

function configOf(job: Job): Record<string, unknown> {
  const result = job.result;
  return result && "adapter_config" in result ? result.adapter_config : {};
}

export function snippetsOf(job: Job, digest: string, hasKey: boolean): Snippet[] {
  const url = addressOf("/").replace(/\/$/, "");
  const auto = AUTO[String(configOf(job).task_type)] ?? "AutoModel";
  const key = hasKey ? ' -H "Authorization: Bearer $FIMLORA_API_KEY"' : "";
  const fetched = `fimlora fetch ${job.id} --output adapter`;
  const peft = [
    `# ${fetched}`,
    `from peft import LoraConfig, get_peft_model`,
    `from transformers import ${auto}`,
    ``,
    `base = ${auto}.from_pretrained("${modelOf(job)}")`,
    `config = LoraConfig.from_pretrained("adapter")`,
    `model = get_peft_model(base, config)`,
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
    `    train_dataset=train_dataset,  # yours`,
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
    { name: "Command line", text: [`export FIMLORA_URL=${url}`, fetched].join("\n") },
    { name: "curl", text: curl.join("\n") },
    { name: "CI", text: ci.join("\n") },
  ];
}
