/** What a field may be, in the API's order: lists made from its description, never typed out by hand. */
import type { Schemas } from "./api";

export {
  adapterOptionsInitAnyOf0Values as INITIAL_WEIGHTS,
  allocationMethodValues as METHODS,
  jobKindValues as KINDS,
  jobStatusValues as STATUSES,
  scopeValues as SCOPES,
} from "./schema";

export type Method = NonNullable<Schemas["Allocation"]["method"]>;
