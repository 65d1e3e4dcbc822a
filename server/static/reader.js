// Pages that are read: the theme that was chosen on the page.

import { recallTheme } from "./theme.js";

recallTheme();
