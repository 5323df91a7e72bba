"use strict";
// Before anything is shown: the theme that was chosen last, else that of the system.
try {
  document.documentElement.dataset.theme = localStorage.getItem("unlabeled-theme") || "";
} catch {
  // storage may be switched off; the theme is the system's then
}
