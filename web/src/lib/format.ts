/** Numbers, sizes and times as they are shown everywhere. */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 1,234,567 */
export function count(value: number | null | undefined): string {
  return value == null ? "–" : whole.format(value);
}

/** 3 significant digits, and of whole numbers all: 0.0123, −1.5e-7, 1234 */
export function figure(value: number | null | undefined, digits = 3): string {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const isFar = size !== 0 && (size < 1e-3 || size >= 1e6);
  const near = () => (size >= 10 ** (digits - 1) ? Math.round(size) : Number(size.toPrecision(digits)));
  const text = isFar ? size.toExponential(digits - 1) : String(near());
  return value < 0 ? `−${text}` : text;
}

/** 12.3 % */
export function percent(value: number | null | undefined, digits = 1): string {
  return value == null ? "–" : `${(100 * value).toFixed(digits)} %`;
}

/** 0-3, 7: numbers in order, those that follow each other as a range. */
export function ranges(numbers: number[] | null | undefined): string {
  if (!numbers) return "–";
  const runs: [number, number][] = [];
  for (const number of numbers) {
    const last = runs.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(", ");
}

/** 1.4 MiB */
export function size(bytes: number | null | undefined): string {
  if (bytes == null) return "–";
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? value.toFixed(value < 10 ? 1 : 0) : value} ${UNITS[unit]}`;
}

/** 850 ms, 4.2 s, 3 min 05 s, 2 h 14 min, 3 d 4 h */
export function duration(seconds: number | null | undefined): string {
  if (seconds == null || seconds < 0) return "–";
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const total = Math.round(seconds);
  if (total < 60) return `${total} s`;
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600), Math.floor(total / 60)];
  const two = (value: number) => String(value).padStart(2, "0");
  if (minutes < 60) return `${minutes} min ${two(total % 60)} s`;
  if (hours < 24) return `${hours} h ${two(minutes % 60)} min`;
  return `${days} d ${hours % 24} h`;
}

/** 2026-01-31 14:05:09, in the time zone of who reads it */
export function clock(time: string | Date): string {
  const at = new Date(time);
  const two = (value: number) => String(value).padStart(2, "0");
  const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
  return `${day} ${[at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":")}`;
}

/** 5 s ago, 3 min ago, 2 h ago, or the day */
export function ago(time: string | Date, now: number): string {
  const seconds = Math.max(0, (now - new Date(time).getTime()) / 1000);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return clock(time).slice(0, 16);
}

/** fitting_head as "fitting head" */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}
